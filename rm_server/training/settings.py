"""What decides the weights that training gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rm_server.registry.manifest import TruncationRule

TrainingPrecision: TypeAlias = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything that decides the weights. The same settings, data and machine give the same weights.

    ``base``: a folder, or a name on the Hugging Face hub. ``batch_size``: pairs in one optimizer step, divided into
    ``accumulation_steps`` forward passes. ``template``, ``max_tokens``, ``truncation``: as in the manifest; None: what
    the base model suggests (and over-long texts are refused).
    ``held_out_share``: of the prompts, kept from training; a ``split_file`` says it by name instead.
    ``subset``: train on this share of the training prompts.
    ``precision``: bf16 is mixed, with weights in fp32; auto is bf16 where the device multiplies it itself.
    ``dropout``: as the model's config says, instead of none (TRL's default is none, and attention without dropout is
    about twice as fast on CPUs).
    ``center_coefficient``: weight of the squared sum of both scores (Eisenstein et al. 2023), which keeps scores
    near 0; 0: off. ``lora_rank`` above 0: only low-rank adapters and the head are trained, and merged at the end, or,
    with ``keep_adapter``, saved beside their base as a version of the kind ``lora``.
    ``checkpoint_steps`` 0: a checkpoint after each epoch.
    """

    base: str
    epochs: int = 1
    learning_rate: float = 5e-5
    warmup_share: float = 0.1
    weight_decay: float = 0.0
    batch_size: int = 16
    accumulation_steps: int = 1
    max_tokens: int | None = None
    template: str | None = None
    truncation: TruncationRule | None = None
    seed: int = 0
    held_out_share: float = 0.1
    split_file: str | None = None
    subset: float = 1.0
    precision: TrainingPrecision = "fp32"
    dropout: bool = False
    center_coefficient: float = 0.0
    lora_rank: int = 0
    keep_adapter: bool = False
    gradient_checkpointing: bool = False
    checkpoint_steps: int = 0
    device: Literal["auto", "cpu"] = "auto"
