"""Makes a version's folder from preference pairs: a base model, TRL's RewardTrainer, and the manifest to serve it."""

from __future__ import annotations

import copy
import json
import logging
import math
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from trl import RewardConfig

from rm_server.backends.checkpoint import quiet_transformers
from rm_server.backends.items import is_messages
from rm_server.backends.loading import infer_manifest, load_encoder
from rm_server.errors import InvalidRequest, NonFiniteScore
from rm_server.registry.digest import hash_file
from rm_server.registry.layout import SPLIT_FILE
from rm_server.registry.manifest import CHAT_TEMPLATE, Manifest, write_manifest
from rm_server.training.base_model import check_positions, choose_pad_id, disable_dropout, find_base, load_base
from rm_server.training.batching import PairBatchSampler, PairCollator
from rm_server.training.data_files import BadData
from rm_server.training.encoding import EncodedPairs, encode_pairs
from rm_server.training.pair_trainer import PairTrainer
from rm_server.training.precision import resolve_precision
from rm_server.training.preferences import (
    Preference,
    Split,
    check_covered,
    read_preferences,
    read_split,
    select,
    split_by_group,
    subset_of_groups,
)
from rm_server.training.progress import ProgressBar
from rm_server.training.run_folder import CHECKPOINTS, begin_folder, find_checkpoint, step_of, writing_to
from rm_server.training.saved_adapter import save_adapter
from rm_server.training.settings import TrainSettings

logger = logging.getLogger(__name__)

TRAINING_FILE = "training.json"


@dataclass(frozen=True, slots=True)
class TrainedVersion:
    """What training gives: the folder, its manifest, the pairs kept from it, and the record in ``training.json``."""

    folder: Path
    manifest: Manifest
    held_out: list[Preference]
    record: dict[str, Any]


def train(
    data: Path,
    out: Path,
    settings: TrainSettings,
    *,
    resume: bool = False,
    shows_progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainedVersion:
    """Trains a reward model on ``data`` and writes it to ``out``; the manifest comes last and makes it a version.

    ``resume`` goes on from the newest checkpoint in ``out``, and begins anew where there is none.

    Raises AlreadyExists when ``out`` has a version or belongs to other settings; BadData for data that cannot be used;
    InvalidRequest for settings that do not go together, or with the base, or a launcher of several processes;
    ArtifactUnreadable, UnsupportedArtifact or WeightsMismatch for a base that cannot be used; NonFiniteScore when the
    weights diverged; StorageFull.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    if settings.keep_adapter and not settings.lora_rank:
        raise InvalidRequest("--keep-adapter needs --lora-rank: without it all weights are trained, and no adapter.")
    if settings.batch_size % settings.accumulation_steps:
        raise InvalidRequest(
            f"--batch-size {settings.batch_size} is not divided into {settings.accumulation_steps} passes of one size; "
            "give --accumulation-steps that divide it."
        )
    settings = replace(settings, precision=resolve_precision(settings))
    pairs = read_preferences(data)
    split = _split(pairs, settings)
    trained_on = subset_of_groups(split.train, settings.subset, settings.seed)
    split = replace(split, train=trained_on, unused=split.train - trained_on)
    training_pairs = select(pairs, split.train)
    data_sha256 = hash_file(data)[1]
    fingerprint = {"data_sha256": data_sha256, **asdict(settings)}
    if settings.split_file is not None:
        fingerprint["split_sha256"] = hash_file(Path(settings.split_file))[1]
    checkpoint = find_checkpoint(out, fingerprint, resume)
    with quiet_transformers():
        base = find_base(settings.base)
        model, tokenizer, fresh_weights = load_base(base, settings.seed)
        if not settings.dropout:
            disable_dropout(model)
        manifest, encoded = _encode(model, tokenizer, training_pairs, settings, shows_progress)
        if settings.keep_adapter:
            manifest = replace(manifest, kind="lora")
        begin_folder(out, fingerprint)
        trainer = _make_trainer(model, tokenizer, encoded, [pair.group for pair in training_pairs], out, settings)
        for callback in [*([ProgressBar("train")] if shows_progress else []), *callbacks]:
            trainer.add_callback(callback)
        with writing_to(out):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        record = {
            "settings": asdict(settings),
            "data": {
                "path": str(data),
                "sha256": data_sha256,
                "num_pairs": len(training_pairs),
                "num_prompts": len({pair.group for pair in training_pairs}),
                "num_texts": encoded.num_texts,
                "num_truncated": encoded.num_truncated,
                "num_held_out_prompts": len(split.held_out),
            },
            "fresh_weights": fresh_weights,
            "num_steps": trainer.state.global_step,
            "resumed_at_step": None if checkpoint is None else step_of(checkpoint),
            "history": _history(trainer.state.log_history),
            "seconds": round(time.monotonic() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu_started, 1),
            "machine": _machine(trainer),
        }
        with writing_to(out):
            _write_version(out, trainer, tokenizer, base, manifest, split, record)
    return TrainedVersion(out, manifest, select(pairs, split.held_out), record)


def _split(pairs: Sequence[Preference], settings: TrainSettings) -> Split:
    groups = {pair.group for pair in pairs}
    if settings.split_file is None:
        return split_by_group(groups, settings.held_out_share, settings.seed)
    path = Path(settings.split_file)
    parts = read_split(path)
    check_covered(pairs, parts, path)
    if groups.isdisjoint(parts["train"]):
        raise BadData(f"None of the pairs is in the part 'train' of {path}.")
    return Split(frozenset(groups & parts["train"]), frozenset(groups & parts["held_out"]))


def _encode(
    model: Any, tokenizer: Any, pairs: Sequence[Preference], settings: TrainSettings, shows_progress: bool
) -> tuple[Manifest, EncodedPairs]:
    """Reads config and tokenizer back as serving will read them: what the pairs become here, they become there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)
        manifest = infer_manifest(
            folder,
            template=settings.template,
            max_tokens=settings.max_tokens,
            truncation=settings.truncation,
            trim_padding=False,  # it gets a pad id with which no item ends
        )
        if not manifest.reads_prompt:
            logger.warning("Prompts will not be read: the template %r has no {prompt}.", manifest.template)
        num_chats = sum(is_messages(pair.chosen) for pair in pairs)
        if num_chats and manifest.template != CHAT_TEMPLATE:
            logger.warning(
                "%d of %d pairs are of chat messages, which the tokenizer's chat template reads; the template %r is "
                "for text, and is learnt from the other pairs alone. With `--template chat` text is read as messages "
                "are.",
                num_chats,
                len(pairs),
                manifest.template,
            )
        check_positions(model, manifest.max_tokens)
        encoder = load_encoder(folder, manifest)
        encoded = encode_pairs(encoder, pairs, truncation=manifest.truncation, shows_progress=shows_progress)
        return manifest, encoded


def _make_trainer(
    model: Any, tokenizer: Any, encoded: EncodedPairs, groups: Sequence[str], out: Path, settings: TrainSettings
) -> PairTrainer:
    pairs_per_pass = settings.batch_size // settings.accumulation_steps
    pad_id = choose_pad_id(model, tokenizer, encoded.last_ids)
    # The trainer gives the model its tokenizer's pad id, and takes EOS where there is none.
    own_tokenizer = copy.deepcopy(tokenizer)
    own_tokenizer.pad_token = own_tokenizer.convert_ids_to_tokens(pad_id)
    with warnings.catch_warnings():
        # RewardConfig itself still says gradient_checkpointing where newer transformers say activation_checkpointing.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
        config = _reward_config(out / CHECKPOINTS, pairs_per_pass, settings)
    if config.world_size > 1:
        raise InvalidRequest(f"Training runs in one process, not in {config.world_size}; start it without a launcher.")
    config._n_gpu = min(config.n_gpu, 1)  # of several GPUs the first: TRL refuses to spread over them in one process
    trainer = PairTrainer(
        model=model,
        args=config,
        data_collator=PairCollator(pad_id),
        train_dataset=encoded.dataset,
        processing_class=own_tokenizer,
        peft_config=_lora(settings),
        batch_sampler=PairBatchSampler(groups, encoded.lengths, pairs_per_pass, settings.seed),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _reward_config(folder: Path, pairs_per_pass: int, settings: TrainSettings) -> RewardConfig:
    return RewardConfig(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=pairs_per_pass,
        gradient_accumulation_steps=settings.accumulation_steps,
        learning_rate=settings.learning_rate,
        warmup_steps=min(settings.warmup_share, math.nextafter(1, 0)),  # 1 would be one step
        weight_decay=settings.weight_decay,
        lr_scheduler_type="linear",
        center_rewards_coefficient=settings.center_coefficient or None,
        max_length=None,  # the encoder has cut, or refused
        disable_dropout=False,  # done before, more thoroughly, where it was asked for
        bf16=settings.precision == "bf16",
        use_cpu=settings.device == "cpu" or not torch.accelerator.is_available(),  # bf16 on a CPU must be asked for
        gradient_checkpointing=settings.gradient_checkpointing,
        seed=settings.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=0.02,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.checkpoint_steps else "epoch",
        save_steps=settings.checkpoint_steps or 500,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )


def _lora(settings: TrainSettings) -> Any:
    if not settings.lora_rank:
        return None
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.SEQ_CLS,  # trains the head whole
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules="all-linear",
    )


def _machine(trainer: PairTrainer) -> dict[str, Any]:
    return {
        "device": str(trainer.args.device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        **{name: version_of(name) for name in ("torch", "transformers", "trl")},
    }


def _history(log_history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    kept = ("step", "epoch", "loss", "accuracy", "margin", "learning_rate", "grad_norm")
    return [
        {name: entry[name] for name in kept if math.isfinite(entry.get(name, math.nan))}
        for entry in log_history
        if "loss" in entry
    ]


def _write_version(
    out: Path,
    trainer: PairTrainer,
    tokenizer: Any,
    base: Path,
    manifest: Manifest,
    split: Split,
    record: dict[str, Any],
) -> None:
    """Weights first, manifest last; then the checkpoints are of no more use. Raises NonFiniteScore."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    keeps_adapter = manifest.kind == "lora"
    if hasattr(model, "merge_and_unload") and not keeps_adapter:
        model = model.merge_and_unload()
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise NonFiniteScore("Training diverged: the weights are not finite. Give a smaller --learning-rate.")
    tokenizer.save_pretrained(out)
    if keeps_adapter:
        save_adapter(out, model, record["settings"]["base"], base, record["fresh_weights"])
    else:
        model.save_pretrained(out)
    # Written readable for its owner alone; a server may be another user.
    for path in out.rglob("*.safetensors"):
        shutil.copymode(out / "tokenizer_config.json", path)
    (out / SPLIT_FILE).write_text(split.to_json(), encoding="utf-8")
    (out / TRAINING_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_manifest(out, manifest)
    shutil.rmtree(out / CHECKPOINTS)
