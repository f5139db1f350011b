"""Scores without a server are those of transformers' own single-item forward, in order, and failures stay failures."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from rm_server.backends.items import Batch, Content, Float64Array
from rm_server.backends.loading import infer_manifest, load_encoder
from rm_server.errors import EmptyItem, NonFiniteScore
from rm_server.training import offline_scoring
from rm_server.training.offline_scoring import offline_scorer

TEXTS: list[tuple[Content, Content]] = [("Say.", " yes" * length) for length in (1, 20, 3, 12, 7)]


@pytest.mark.parametrize("family", ["bert", "llama", "deberta_v2"])
def test_scores_are_in_the_order_asked(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_scoring, "MAX_BATCH_TOKENS", 60)  # several batches
    folder = tiny_models.make_checkpoint(tmp_path, family)
    manifest = infer_manifest(folder)
    scores = [entry.score for entry in offline_scorer(folder, manifest)(TEXTS)]
    model, encoder = tiny_models.make_model(family), load_encoder(folder, manifest)
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor(encoder.encode(*text).ids)[None]).logits.item() for text in TEXTS]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len(set(scores)) == len(TEXTS)


def test_one_bad_text_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    score = offline_scorer(folder, infer_manifest(folder, max_tokens=24, truncation="keep_start"))
    good, bad, cut = score([("Say.", " yes"), ("Say.", ""), ("Say.", " yes" * 50)])
    assert isinstance(good.score, float)
    assert isinstance(bad.score, EmptyItem)
    assert (good.truncated, cut.truncated) == (False, True)


def test_a_score_that_is_none_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def score(self, batch: Batch) -> Float64Array:
            import numpy as np

            return np.where(batch.lengths > 20, np.nan, 1.5)

    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    monkeypatch.setattr(offline_scoring, "load_backend", lambda *args: Broken())
    scores = [entry.score for entry in offline_scorer(folder, infer_manifest(folder))(TEXTS)]
    assert isinstance(scores[1], NonFiniteScore)
    assert f"{folder} gave nan for a text. Its weights are finite" in scores[1].message
    assert scores[0] == 1.5


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (scored,) = offline_scorer(folder, infer_manifest(folder))(TEXTS[:1])
    assert isinstance(scored.score, NonFiniteScore)
    assert f"{folder} gave nan" in scored.score.message
    assert "weights of 1 of its tensors are not finite, first those of classifier.weight" in scored.score.message
