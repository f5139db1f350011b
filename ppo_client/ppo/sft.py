"""A short supervised fine-tune, which gives PPO its starting policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppo_client.ppo.errors import ConfigError, DataError
from ppo_client.ppo.rows import check_unicode, read_rows


@dataclass(frozen=True, slots=True)
class SFTSettings:
    """All settings of a supervised fine-tune."""

    model: str = ""
    """Directory of a decoder-only or encoder-decoder checkpoint with its tokenizer. Required."""
    data: str = ""
    """File of JSON Lines, a JSON array or CSV (`.gz`, too), or Parquet, or a folder by datasets' `save_to_disk`. Rows
    have `text`, or `prompt` and `completion`; of the latter only the completion is learnt. EOS is added. An
    encoder-decoder needs the latter. Required."""
    output: str = ""
    """Directory that becomes a plain model directory. Required."""
    where: str = ""
    """`name=value`: only rows whose field `name` has this value."""
    num_epochs: float = 1.0
    max_steps: int = 0
    """Ends after this many optimizer steps; 0: after the epochs."""
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_tokens: int = 512
    """Longer texts are cut; of an encoder-decoder, prompts and completions each."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass: less memory, about a third more time."""
    seed: int = 0
    log_every_steps: int = 10

    def __post_init__(self) -> None:
        if missing := [name for name in ("model", "data", "output") if not getattr(self, name)]:
            raise ConfigError(f"{', '.join(missing)} missing: give --{' --'.join(missing)}, or set it in the file")
        counts = (self.batch_size, self.gradient_accumulation_steps, self.max_tokens, self.log_every_steps)
        if min(counts) < 1 or not 0 < self.num_epochs < math.inf:
            raise ConfigError(
                "batch_size, gradient_accumulation_steps, max_tokens and log_every_steps must be 1 or more, num_epochs "
                "above 0, and finite"
            )
        if min(self.max_steps, self.warmup_steps) < 0 or not 0 <= self.seed < 2**32:
            raise ConfigError("max_steps and warmup_steps must not be negative, and seed lie in 0..2**32 − 1")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            raise ConfigError("learning_rate must be above 0, weight_decay not negative, and both finite")


def fine_tune(settings: SFTSettings) -> dict[str, float]:
    """Trains, and writes model and tokenizer to `settings.output`; returns the metrics of the run."""
    rows = read_examples(settings)
    # Heavy, and not needed to refuse a wrong setting.
    from ppo_client.ppo.checkpoint import share_as_folder
    from ppo_client.ppo.models.build import load_language_model, load_tokenizer, policy_class, quiet_transformers

    quiet_transformers()
    tokenizer = load_tokenizer(settings.model)
    if tokenizer is None or tokenizer.eos_token is None:
        raise ConfigError(f"{settings.model} has no tokenizer with an EOS token, so the policy could not learn to stop")
    make_trainer = _causal_trainer if policy_class(settings.model).continues_prompt else _seq2seq_trainer
    trainer = make_trainer(settings, load_language_model(settings.model, "float32"), tokenizer, rows)
    metrics: dict[str, float] = trainer.train().metrics
    trainer.save_model(settings.output)
    tokenizer.save_pretrained(settings.output)
    share_as_folder(Path(settings.output))
    return metrics


def _causal_trainer(settings: SFTSettings, model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> Any:
    """TRL's, which adds EOS and masks prompts."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(max_length=settings.max_tokens, **_arguments(settings)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def _seq2seq_trainer(settings: SFTSettings, model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> Any:
    """transformers' own: TRL's knows no encoder. It reads prompts as the policy does in PPO."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    if "prompt" not in rows[0]:
        raise DataError(
            f"{settings.data}: rows have `text`, and {settings.model} is an encoder-decoder, which reads a `prompt` "
            "and writes a `completion`: split the texts"
        )
    size, eos = settings.max_tokens, tokenizer.eos_token_id
    inputs = tokenizer([row["prompt"] for row in rows], truncation=True, max_length=size)["input_ids"]
    labels = tokenizer(text_target=[row["completion"] for row in rows])["input_ids"]
    ended = [ids if ids and ids[-1] == eos else [*ids, eos] for ids in labels]
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**_arguments(settings)),
        train_dataset=Dataset.from_dict({"input_ids": inputs, "labels": [ids[:size] for ids in ended]}),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )


def _arguments(settings: SFTSettings) -> dict[str, Any]:
    """What both trainers are told."""
    import torch

    return {
        "output_dir": settings.output,
        "num_train_epochs": settings.num_epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "logging_steps": settings.log_every_steps,
        "bf16": False,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
    }


def read_examples(settings: SFTSettings) -> list[dict[str, Any]]:
    """Rows with `text`, or with `prompt` and `completion`. Raises DataError where a row has neither."""
    rows = []
    for place, row in read_rows(Path(settings.data), settings.where, ("text", "prompt", "completion")):
        names = ("text",) if "text" in row else ("prompt", "completion")
        if any(not isinstance(row.get(name), str) or not row[name] for name in names):
            raise DataError(
                f"{place}: a text under `text`, or under `prompt` and `completion`, is expected; "
                f"the row has {', '.join(row)}"
            )
        for name in names:
            check_unicode(row[name], place)
        rows.append({name: row[name] for name in names})
    if not rows:
        raise DataError(f"{settings.data}: no rows")
    if len({tuple(row) for row in rows}) > 1:
        raise DataError(f"{settings.data}: some rows have `text`, others `prompt` and `completion`; use one kind")
    return rows
