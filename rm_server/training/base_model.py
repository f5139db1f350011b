"""The checkpoint that training starts from: found, read as data, and given a fresh scalar head where it has none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import set_seed

from rm_server.backends.checkpoint import (
    check_weight_files,
    read_classifier,
    read_config,
    read_tokenizer,
    table_limit,
)
from rm_server.backends.json_file import first_line
from rm_server.errors import ArtifactUnreadable, InvalidRequest, UnsupportedArtifact, WeightsMismatch
from rm_server.training.sources import HUB_PREFIX, hub_snapshot

# transformers carries no types; these names say which of its objects is meant.
Model: TypeAlias = Any
Tokenizer: TypeAlias = Any


def find_base(name: str) -> Path:
    """The folder of a base model: the path itself, or the Hugging Face hub's model (org/name, hf://org/name@revision).

    Only data is fetched, into the hub's cache; see `hub_snapshot`. Raises ArtifactUnreadable.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    repo, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    try:
        return hub_snapshot(repo, revision or None)
    except ArtifactUnreadable as error:
        raise ArtifactUnreadable(f"The base model {name!r} is no folder. {error.message}") from error


def load_base(folder: Path, seed: int) -> tuple[Model, Tokenizer, list[str]]:
    """The sequence classifier with one output, in fp32, its tokenizer, and the names of the weights drawn afresh.

    Those may only lie outside of the backbone (the head, and what is between): drawn from ``seed``.

    Raises ArtifactUnreadable or UnsupportedArtifact; WeightsMismatch when the backbone's own weights are missing.
    """
    check_weight_files(folder)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    config.num_labels = 1
    set_seed(seed)
    try:
        model, info = read_classifier(folder, config)
    except (ValueError, RuntimeError, ImportError) as error:
        raise UnsupportedArtifact(
            f"transformers cannot build a reward model on {folder}: {first_line(error)}"
        ) from error
    # Of another size is the head of a classifier of several labels.
    fresh = sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})
    _refuse_fresh_backbone(folder, model, fresh)
    return model, tokenizer, fresh


def _refuse_fresh_backbone(folder: Path, model: Model, fresh: Iterable[str]) -> None:
    """A pooler may be new, as in a plain masked language model; anything else of the backbone may not."""
    backbone = f"{model.base_model_prefix}."
    lost = [name for name in fresh if name.startswith(backbone) and not name.startswith(f"{backbone}pooler.")]
    if lost:
        raise WeightsMismatch(
            f"{folder} lacks weights of the backbone ({', '.join(lost[:6])}{' …' if len(lost) > 6 else ''}): "
            f"it is no checkpoint of {type(model).__name__}."
        )


def check_positions(model: Model, max_tokens: int) -> None:
    """Raises InvalidRequest for items longer than a learnt position table; computed positions have no such end."""
    limit = table_limit(model.config, model.base_model)
    if limit is not None and max_tokens > limit:
        raise InvalidRequest(f"--max-tokens {max_tokens} is more than the {limit} positions of the base model.")


def disable_dropout(model: Model) -> None:
    """Sets every dropout to 0: modules, and the plain numbers that some attention layers keep instead."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def choose_pad_id(model: Model, tokenizer: Tokenizer, last_ids: Iterable[int]) -> int:
    """A pad id that the model has an embedding for and no item ends with.

    Many a base's tokenizer got a pad token that the model never learnt. Decoders read the score at the last token that
    is not the pad id. Where EOS is padding, as is usual for tokenizers without a pad token, that would be the token
    before the EOS; serving goes by lengths and reads the EOS.
    """
    taken, config = set(last_ids), model.config.get_text_config()
    for pad_id in (tokenizer.pad_token_id, config.pad_token_id):
        if pad_id is not None and 0 <= pad_id < config.vocab_size and pad_id not in taken:
            return int(pad_id)
    return next(token for token in range(len(taken) + 1) if token not in taken)
