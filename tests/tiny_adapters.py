"""Tiny random LoRA adapters, saved by peft beside the base that they belong to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification


def make_adapter(
    folder: Path, base: Path, *, seed: int = 0, copies_base: bool = True, num_labels: int = 1, **config: Any
) -> Path:
    """Writes an adapter with a head of its own into ``folder``, and, unless told otherwise, its base into ``base/``."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=num_labels, ignore_mismatched_sizes=True
    )
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": TaskType.SEQ_CLS, **config}
    adapted = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    adapted.save_pretrained(folder)
    if copies_base:
        shutil.copytree(base, folder / "base")
    return folder


def peft_model(folder: Path, base: Path) -> Any:
    """The adapter as peft runs it."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, ignore_mismatched_sizes=True)
    return PeftModel.from_pretrained(model, folder).eval()


def peft_scores(folder: Path, base: Path, items: list[list[int]]) -> list[float]:
    """Each item's logit by peft's own forward, one at a time."""
    model = peft_model(folder, base)
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in items]
