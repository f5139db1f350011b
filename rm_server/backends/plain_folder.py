"""What a plain Hugging Face folder, one without `reward_model.json`, says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rm_server.errors import UnsupportedArtifact
from rm_server.registry.lora import base_folder, is_adapter, tokenizer_folder
from rm_server.registry.manifest import (
    CHAT_TEMPLATE,
    KINDS_WITHOUT_WEIGHTS,
    Kind,
    Manifest,
    Transform,
    TruncationRule,
)

DEFAULT_TEMPLATE = "{prompt}{completion}"
_SPECS: tuple[tuple[str, Kind, Transform], ...] = (
    ("rules.json", "rules", "rule"),
    ("composite.json", "composite", "weighted_sum"),
)
# Tokenizers without a limit write 1e30 for it.
_NO_LIMIT = 10**9


def infer_manifest(
    folder: Path,
    *,
    template: str | None = None,
    label_index: int | str | None = None,
    max_tokens: int | None = None,
    truncation: TruncationRule | None = None,
    append_eos: bool | None = None,
    trim_padding: bool | None = None,
) -> Manifest:
    """The manifest of a checkpoint, an adapter, rules or a composite; what is given wins over the inferred.

    ``template``: the tokenizer's chat template where it has one, else prompt and completion joined as they are.
    ``label_index``: 0 for a scalar head; a classifier's label must be given, by index or by name.
    ``max_tokens``: what both the positions and the tokenizer allow.
    ``append_eos``: as TRL's RewardTrainer does: for decoders whose tokenizer has an EOS and does not add it, unless the
    chat template ends turns itself, or the EOS is also the pad token (the trainer then reads the score before it).
    ``trim_padding``: for decoders whose pad token is also the EOS, or is written by the chat template: of both,
    transformers (and so whoever trained them) reads the score before it.

    Raises ArtifactUnreadable or UnsupportedArtifact.
    """
    for name, spec_kind, transform in _SPECS:
        if (folder / name).exists():
            return Manifest(
                spec_kind, max_tokens=max_tokens or 0, truncation=truncation or "refuse", transform=transform
            )
    # Imported here, so that `loading` can name this function without importing torch.
    from rm_server.backends.checkpoint import empty_model, position_limit, read_tokenizer
    from rm_server.backends.torch.pooling import scores_last_token

    kind: Kind = "lora" if is_adapter(folder) else "sequence_classification"
    config = _config_of(folder)
    tokenizer = read_tokenizer(tokenizer_folder(folder) if kind == "lora" else folder)
    model = empty_model(config)
    if template is None:
        template = CHAT_TEMPLATE if tokenizer.chat_template else DEFAULT_TEMPLATE
    if append_eos is None:
        append_eos = scores_last_token(model) and template != CHAT_TEMPLATE and _eos_is_read(config, tokenizer)
    elif append_eos and tokenizer.eos_token_id is None:
        raise UnsupportedArtifact(f"append_eos is asked for, and the tokenizer in {folder} has no EOS token.")
    if trim_padding is None:
        trim_padding = scores_last_token(model) and _pad_is_written(config, tokenizer, template)
    limits = [position_limit(config, model.base_model), tokenizer.model_max_length]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT]
    limit = min(known, default=0)
    if max_tokens is not None:
        limit = max_tokens
    if limit <= 0:
        raise UnsupportedArtifact(f"Nothing in {folder} says how long an item may be; give max_tokens.")
    return Manifest(
        kind=kind,
        template=template,
        append_eos=append_eos,
        trim_padding=trim_padding,
        max_tokens=limit,
        truncation=truncation or "refuse",
        label_index=_label_index(folder, config, label_index),
    )


def scoring_label(folder: Path, manifest: Manifest) -> str:
    """The label whose logit is the score, by index and name (``1 toxic``); empty where there are not several."""
    if manifest.kind in KINDS_WITHOUT_WEIGHTS:
        return ""
    config = _config_of(folder)
    names = config.id2label or {}
    return f"{manifest.label_index} {names.get(manifest.label_index, '')}".strip() if config.num_labels > 1 else ""


def _config_of(folder: Path) -> Any:
    """A checkpoint's config; of an adapter its base's, with the adapter's labels."""
    from rm_server.backends.checkpoint import read_config

    if not is_adapter(folder):
        return read_config(folder)
    from rm_server.backends.torch.lora import read_adapted_config
    from rm_server.backends.torch.lora_adapter import read_adapter

    return read_adapted_config(base_folder(folder), read_adapter(folder))


def _eos_is_read(config: Any, tokenizer: Any) -> bool:
    """Whether an EOS should follow the text: there is one, it is not added anyway, and it is no padding."""
    eos_id = tokenizer.eos_token_id
    if eos_id is None or eos_id == config.get_text_config().pad_token_id:
        return False
    added = tokenizer.backend_tokenizer.encode("a").ids[-1:]  # nothing, where no letter is a token
    return bool(added != [eos_id])


def _pad_is_written(config: Any, tokenizer: Any, template: str) -> bool:
    """Whether the model's pad id comes in what it reads."""
    pad_id = config.get_text_config().pad_token_id
    if pad_id is None or pad_id < 0:  # older configs say -1 for none
        return False
    if pad_id == tokenizer.eos_token_id:
        return True
    pad = tokenizer.convert_ids_to_tokens(pad_id)
    return template == CHAT_TEMPLATE and pad is not None and pad in str(tokenizer.chat_template)


def _label_index(folder: Path, config: Any, label: int | str | None) -> int:
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    labels = ", ".join(f"{index} {names.get(index, '')}".strip() for index in range(config.num_labels))
    if label is None:
        if config.num_labels == 1:
            return 0
        architectures = ", ".join(config.architectures or ())
        if "SequenceClassification" in architectures:
            hint = ""
        else:
            # transformers takes two labels for granted where a config has none.
            hint = f" Its config names {architectures or 'no head'}: what has no head must be trained first."
        raise UnsupportedArtifact(
            f"{folder} has {config.num_labels} labels ({labels}): register it with --label-index, which says whose "
            f"logit is the score.{hint}"
        )
    if isinstance(label, str) and not label.isdecimal():
        matches = [index for index, name in names.items() if name.casefold() == label.casefold()]
        if len(matches) != 1:
            raise UnsupportedArtifact(f"{folder} has no label {label!r}; it has {labels}.")
        return matches[0]
    if not 0 <= int(label) < config.num_labels:
        raise UnsupportedArtifact(f"{folder} has no label {label}; it has {labels}.")
    return int(label)
