"""A version's folder becomes its encoder and its backend, by the manifest's kind.

torch and transformers are imported when a version needs them: rules are served without.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rm_server.backends.composite import CompositeEncoder, read_composite
from rm_server.backends.interface import Backend, ComputeSettings, Encoder
from rm_server.backends.plain_folder import infer_manifest
from rm_server.backends.rules.backend import RulesBackend, RulesEncoder, SeveralRulesBackend
from rm_server.backends.rules.rule_list import read_rules
from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact
from rm_server.registry.composite import FILE_NAME as COMPOSITE_FILE
from rm_server.registry.lora import base_folder, tokenizer_folder
from rm_server.registry.manifest import Manifest

if TYPE_CHECKING:
    from rm_server.backends.tokenization.text_encoder import TextEncoder

__all__ = ["check_spec", "infer_manifest", "load_backend", "load_encoder", "load_text_encoder", "load_weightless"]


def load_encoder(folder: Path, manifest: Manifest) -> Encoder:
    """The version's encoder; serving and training use the same. Raises BrokenVersion subclasses."""
    if manifest.kind == "rules":
        return RulesEncoder(read_rules(folder), manifest)
    if manifest.kind == "composite":
        if manifest.transform != "weighted_sum":
            raise UnsupportedArtifact(f"A composite's transform is weighted_sum, not {manifest.transform}.")
        return CompositeEncoder(read_composite(folder), manifest)
    return load_text_encoder(folder, manifest)


def load_weightless(folder: Path, manifest: Manifest) -> Backend | None:
    """The backend of a version that has no weights, so that it can be held twice; None: it has some."""
    return load_backend(folder, manifest, ComputeSettings()) if manifest.kind == "rules" else None


def check_spec(folder: Path) -> None:
    """Refuses a spec of a composite that makes no sense, before it becomes a version.

    Raises UnsupportedArtifact; ArtifactUnreadable where the folder is closed to this process, say.
    """
    try:
        is_composite = (folder / COMPOSITE_FILE).is_file()  # a pipe is refused by who registers, unread
    except OSError as error:
        raise ArtifactUnreadable(f"{folder} cannot be read: {error.strerror}.") from error
    if is_composite:
        read_composite(folder, is_pinned=False)


def load_text_encoder(folder: Path, manifest: Manifest) -> TextEncoder:
    """The encoder of a folder with a tokenizer and a config; needs no weights.

    A manifest that sets no ``max_tokens`` gets the architecture's limit.
    """
    from rm_server.backends.checkpoint import empty_model, position_limit, read_config, read_tokenizer
    from rm_server.backends.tokenization.text_encoder import TextEncoder

    is_lora = manifest.kind == "lora"
    config = read_config(base_folder(folder) if is_lora else folder)
    tokenizer = read_tokenizer(tokenizer_folder(folder) if is_lora else folder)
    if manifest.append_eos and tokenizer.eos_token_id is None:
        raise UnsupportedArtifact(f"The manifest says append_eos, and the tokenizer in {folder} has no EOS token.")
    if manifest.template == "chat" and not tokenizer.chat_template:
        raise UnsupportedArtifact(
            f"The manifest's template is chat, and the tokenizer in {folder} has no chat template."
        )
    text_config = config.get_text_config()
    max_tokens = manifest.max_tokens or position_limit(config, empty_model(config).base_model) or 0
    return TextEncoder(
        tokenizer,
        manifest,
        vocabulary_size=text_config.vocab_size,
        max_tokens=max_tokens,
        pad_id=text_config.pad_token_id if manifest.trim_padding else None,
        uses_type_ids="token_type_ids" in tokenizer.model_input_names
        and getattr(text_config, "type_vocab_size", 0) > 1,
    )


def load_backend(folder: Path, manifest: Manifest, settings: ComputeSettings) -> Backend:
    """The version's backend, ready to score.

    Raises BrokenVersion subclasses (WeightsMismatch, ArtifactUnreadable, UnsupportedArtifact) or OutOfMemory.
    """
    if manifest.kind == "rules":
        rules = read_rules(folder)
        return (SeveralRulesBackend if len(rules.rules) > 1 else RulesBackend)(rules, manifest)
    if manifest.kind == "composite":
        # What it computes itself are its own rules; the versions that it is made of are loaded beside it.
        return SeveralRulesBackend(read_composite(folder).rules, manifest)
    if manifest.kind == "sequence_classification":
        from rm_server.backends.torch.backend import load_torch_backend

        return load_torch_backend(folder, manifest, settings)
    if manifest.kind == "lora":
        from rm_server.backends.torch.lora import load_lora_backend

        return load_lora_backend(folder, manifest, settings)
    from rm_server.backends.onnx.backend import load_onnx_backend

    return load_onnx_backend(folder, manifest, settings)
