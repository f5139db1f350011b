"""Which files of a folder make a version: the ones that decide its raw scores. Everything else stays outside."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact
from rm_server.registry.manifest import FILE_NAME as MANIFEST_NAME
from rm_server.registry.manifest import Kind
from rm_server.registry.onnx_file import MODEL, read_onnx_file

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_FILE = "base.json"
"""Names the version that an adapter belongs to; see `registry.lora`."""
BASE_FOLDER = "base"
"""Where an adapter that is no version yet may keep the checkpoint that it belongs to."""

SPLIT_FILE = "split.json"
"""Says which prompts a version was trained on. It is kept with the version, and decides no score."""

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_REQUIRED: dict[Kind, tuple[str, ...]] = {
    "sequence_classification": ("config.json",),
    "lora": (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FILE),
    "onnx": ("model.onnx", "config.json"),
    "rules": ("rules.json",),
    "composite": ("composite.json",),
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def version_files(folder: Path, kind: Kind) -> tuple[PurePosixPath, ...]:
    """The files that decide the raw scores, relative to the folder, sorted by the bytes of their names.

    Required are ``config.json`` and ``model.safetensors`` (or its index with every shard) for
    ``sequence_classification``; the adapter and the name of its base for ``lora``; ``config.json`` and ``model.onnx``
    with the files that it keeps weights in for ``onnx``; the spec for ``rules`` and ``composite``. Tokenizer files
    count wherever there are any. Pickle files (``pytorch_model.bin``, ``training_args.bin``, …) are never among them.

    Raises ArtifactUnreadable when a required file is missing, UnsupportedArtifact when there are only pickled weights
    or a link leads out of the folder.
    """
    if not folder.is_dir():
        raise ArtifactUnreadable(f"{folder} is not a folder.")
    names = [*_REQUIRED[kind], *tokenizer_files(folder)]
    if kind == "sequence_classification":
        names += checkpoint_weights(folder)
    for name in names:
        _check_file(folder, name)
    if kind == "onnx":
        names += _external_weights(folder)
    return tuple(sorted(map(PurePosixPath, set(names)), key=lambda path: str(path).encode()))


def check_entries(folder: Path) -> None:
    """Raises ArtifactUnreadable for what has no end, or waits for ever, when it is read: a device, a pipe.

    Asked before any file of a folder that somebody named is read. What is no folder is left to who reads it.
    """
    for place in (folder, folder / BASE_FOLDER):
        try:
            for path in place.iterdir() if place.is_dir() else ():
                if path.exists() and not (path.is_file() or path.is_dir()):
                    raise ArtifactUnreadable(
                        f"{path} is neither a file nor a folder, but a pipe, socket or device. Take it out."
                    )
        except OSError as error:
            raise ArtifactUnreadable(f"{place} cannot be read: {error.strerror}.") from error


def adapter_files(folder: Path) -> tuple[str, ...]:
    """All of a LoRA version's but `BASE_FILE`. Raises what `version_files` raises."""
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *tokenizer_files(folder))
    for name in names:
        _check_file(folder, name)
    return names


def files_beside(folder: Path) -> tuple[str, ...]:
    """What is kept with a version's files, and is no part of its digest. Raises UnsupportedArtifact for a link out."""
    if not (folder / SPLIT_FILE).is_file():
        return ()
    _check_inside(folder, folder / SPLIT_FILE)
    return (SPLIT_FILE,)


def tokenizer_files(folder: Path) -> list[str]:
    """The files of a tokenizer that lie in the folder."""
    return _matches(folder, _TOKENIZER)


def checkpoint_weights(folder: Path) -> list[str]:
    """``model.safetensors``, else the index and its shards: the order in which transformers looks for them.

    Raises ArtifactUnreadable where there are none, UnsupportedArtifact for pickles and for shards elsewhere.
    """
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        _refuse_pickles(folder)
        hint = (
            f' To serve its {MODEL}, give it a {MANIFEST_NAME} with "kind": "onnx".'
            if (folder / MODEL).exists()
            else ""
        )
        raise ArtifactUnreadable(f"{folder} has no weights: neither {WEIGHTS} nor {WEIGHTS_INDEX}.{hint}")
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactUnreadable(f"{index} is no index of weights: {error!r}") from error
    if not shards:
        raise ArtifactUnreadable(f"{index} names no file: its weight_map is empty.")
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UnsupportedArtifact(f"{index} names {shard!r}; only safetensors files beside it are read.")
    return [WEIGHTS_INDEX, *shards]


def _matches(folder: Path, patterns: Iterable[str]) -> list[str]:
    return [path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)]


def _external_weights(folder: Path) -> list[str]:
    """Exporters put weights beside the model that do not fit into the 2 GB of one protobuf message."""
    names = sorted(read_onnx_file(folder / MODEL).external)
    for name in names:
        _check_file(folder, name)
    return names


def _check_file(folder: Path, name: str) -> None:
    path = folder / name
    _check_inside(folder, path)
    if not path.is_file():
        _refuse_pickles(folder)
        raise ArtifactUnreadable(f"{path} is missing, or is not a file.")


def _check_inside(folder: Path, path: Path) -> None:
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UnsupportedArtifact(
            f"{path} is a link to {target}, outside of the folder. Register a folder with real files, "
            "made with `cp -rL` for example."
        )


def _refuse_pickles(folder: Path) -> None:
    """Called once the safe form is missing: then the pickled one is what the caller meant."""
    pickles = sorted(_matches(folder, _PICKLES))
    if pickles:
        raise UnsupportedArtifact(
            f"{folder} has its weights as pickle ({', '.join(pickles)}), which can run any code when it is opened and "
            "is never read here. Convert them on a machine where you trust them: "
            "`AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(new_folder)` "
            "writes safetensors."
        )
