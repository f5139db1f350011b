"""Scores of length-dependent frequencies: of each text its own, whatever was scored before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForSequenceClassification

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.loading import load_backend
from rm_server.registry.manifest import Manifest

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("family", ["gemma3", "modernbert"])
def test_frequencies_of_some_layers_follow_the_text_alone(tmp_path: Path, family: str) -> None:
    folder = tiny_models.make_checkpoint(
        tmp_path,
        family,
        max_position_embeddings=48,
        layer_types=["sliding_attention", "full_attention"] * (2 if family == "modernbert" else 1),
        rope_parameters={"full_attention": DYNAMIC, "sliding_attention": PLAIN},
    )
    backend = load_backend(folder, Manifest(kind="sequence_classification", max_tokens=120), ComputeSettings())
    for length in (120, 100, 60, 30, 100):  # the longest first: it is what is remembered
        ids = np.random.default_rng(length).integers(5, tiny_models.VOCAB_SIZE, length).astype(np.int32)
        fresh = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
        with torch.inference_mode():
            expected = float(fresh(input_ids=torch.from_numpy(ids).long()[None]).logits)
        assert backend.score(Batch.of([EncodedItem(ids, length)])) == pytest.approx([expected], abs=1e-5)
