"""A Hugging Face folder, read as data: config, tokenizer, architecture and weights, each failure with its own error."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rm_server.backends.device_memory import is_out_of_memory, let_go_of
from rm_server.backends.footprint import types_of
from rm_server.backends.json_file import first_line, read_json
from rm_server.errors import ArtifactUnreadable, OutOfMemory, UnsupportedArtifact, WeightsMismatch
from rm_server.registry.layout import WEIGHTS_INDEX, checkpoint_weights

# transformers carries no types; these names say which of its objects is meant.
Config: TypeAlias = Any
Tokenizer: TypeAlias = Any
Model: TypeAlias = Any
LoadingInfo: TypeAlias = dict[str, Any]

_NAMES_SHOWN = 6
_NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}
_NO_FLOATS = ("BOOL", "I", "U")
"""How the names of other types begin: those of masks and positions, which computing makes anew."""
_POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions", "positions_embed", "pos_encoding")
# A constant that older GPT-2 checkpoints carry among the weights; no release of the last years reads it.
_LEFT_OVER = (".attn.masked_bias",)


def read_config(folder: Path) -> Config:
    """The architecture's settings.

    Raises ArtifactUnreadable when config.json is missing or no JSON, UnsupportedArtifact for an unknown architecture.
    """
    content = read_json(folder / "config.json")
    if content.get("quantization_config"):
        raise UnsupportedArtifact(
            f"{folder} holds quantized weights ({content['quantization_config'].get('quant_method', 'some method')}); "
            "save it in fp32, bf16 or fp16 and register that."
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise UnsupportedArtifact(
            f"{folder}/config.json describes {content.get('model_type', 'no known model_type')!r}, "
            f"which transformers cannot build without code from elsewhere: {first_line(error)}"
        ) from error


def read_tokenizer(folder: Path) -> Tokenizer:
    """The folder's fast tokenizer.

    Raises ArtifactUnreadable when there is none or it is broken, UnsupportedArtifact when it is not a fast one.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        raise ArtifactUnreadable(f"{folder} has no tokenizer (tokenizer.json); save it beside the weights.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizer raises bare Exceptions for a broken file
        raise ArtifactUnreadable(f"The tokenizer in {folder} cannot be read: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UnsupportedArtifact(
            f"{folder} has a tokenizer that exists in Python alone ({type(tokenizer).__name__}); "
            "convert it to tokenizer.json (the `tokenizers` library)."
        )
    return tokenizer


def empty_model(config: Config) -> Model:
    """The sequence classifier of ``config`` without weights (on the meta device): its structure can be asked about.

    Raises UnsupportedArtifact when transformers has no sequence classifier of that type.
    """
    try:
        # fp32, or building a bf16 config would change torch's default type for a moment, for all threads.
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:
        raise UnsupportedArtifact(
            f"transformers has no sequence classification for model_type {config.model_type!r}: {first_line(error)}"
        ) from error


def load_model(
    folder: Path, config: Config, replaced: Collection[str] = (), dtype: torch.dtype | None = torch.float32
) -> Model:
    """The sequence classifier on the CPU, in evaluation mode, every weight of it from the folder.

    ``replaced``: names of modules whose weights come from elsewhere (an adapter's head). The folder need not have them,
    and may have another head in their place, as a language model has. ``dtype``: of the backbone's weights; None: bf16
    and fp16 where the folder's files have them so. Head, pooler and buffers are in fp32.

    Raises ArtifactUnreadable, WeightsMismatch, UnsupportedArtifact or OutOfMemory.
    """
    check_weight_files(folder)
    try:
        with quiet_transformers():
            model, info = read_classifier(folder, config, dtype)
    except (SafetensorError, OSError) as error:
        raise ArtifactUnreadable(f"The weights in {folder} cannot be read: {first_line(error)}") from error
    except (ValueError, RuntimeError, ImportError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"Not enough memory for the weights of {folder}: {first_line(error)}") from error
        raise UnsupportedArtifact(f"transformers cannot load {folder}: {first_line(error)}") from error
    _refuse_mismatches(folder, model, info, replaced)
    _own_weights(model)
    return model.eval().requires_grad_(False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps bars for every file, and reports of weights that came or did not (which are checked), off the terminal."""
    verbosity, bars_were_shown = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars_were_shown:
            transformers_logging.enable_progress_bar()


def read_classifier(
    folder: Path, config: Config, dtype: torch.dtype | None = torch.float32
) -> tuple[Model, LoadingInfo]:
    """transformers' own reading, of data only; raises what it raises. ``dtype`` as in `load_model`.

    What is missing, or has another size, is in the info for the caller to judge, and is drawn at random in the model.
    """
    if dtype == torch.float32:
        return _read(AutoModelForSequenceClassification, folder, config)
    empty = empty_model(config)
    names = empty.state_dict()
    types = _file_types(folder, names) if dtype is None else dict.fromkeys(names, dtype)
    model, info = _read(_narrowed(type(empty), types), folder, config)
    model.__class__ = type(empty)
    return model, info


def _file_types(folder: Path, names: Collection[str]) -> dict[str, torch.dtype]:
    """The types that weights of these names can be read into from the folder's files, and lose nothing; fp32 at most.

    What transformers renames, or puts together, as experts, is not found by its name: it is as narrow as all the
    tensors that belong to no name.
    """
    files = [folder / name for name in checkpoint_weights(folder) if name != WEIGHTS_INDEX]
    stored = {
        name: _NARROW.get(kind, torch.float32)
        for path in files
        for name, kind in types_of(path).items()
        if not kind.startswith(_NO_FLOATS)
    }
    others = {dtype for name, dtype in stored.items() if name not in names}
    other = others.pop() if len(others) == 1 else torch.float32
    return {name: stored.get(name, other) for name in names}


def _narrowed(architecture: Any, types: Mapping[str, torch.dtype]) -> Any:
    """The same architecture, whose models have a backbone in these types, by weights' names, before they have weights.

    transformers gives each weight the type that it finds in its place, as it is read: all of them are never in memory
    in another one. By its own setting for that, buffers would be narrow, too.
    """

    def build(model: Model, *args: Any, **kwargs: Any) -> None:
        architecture.__init__(model, *args, **kwargs)
        backbone = {id(parameter) for parameter in model.base_model.parameters()}
        pooler = getattr(model.base_model, "pooler", None)
        backbone -= {id(parameter) for parameter in (pooler.parameters() if pooler is not None else ())}
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and id(parameter) in backbone:
                parameter.data = parameter.data.to(types[name])

    return type(architecture.__name__, (architecture,), {"__init__": build, "__module__": architecture.__module__})


def _read(architecture: Any, folder: Path, config: Config) -> tuple[Model, LoadingInfo]:
    found: tuple[Model, LoadingInfo] = architecture.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return found


def check_weight_files(folder: Path) -> None:
    """Sees that the folder has safetensors files and that each is as long as its header says.

    Raises ArtifactUnreadable for missing and broken files, UnsupportedArtifact for pickled weights and adapters.
    """
    if (folder / "adapter_config.json").is_file():
        raise UnsupportedArtifact(f"{folder} is an adapter, not a whole model; its kind is `lora`.")
    for name in checkpoint_weights(folder):
        if name == WEIGHTS_INDEX:
            continue
        path = folder / name
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()  # opening has compared the header with the file's size
        except FileNotFoundError:
            raise ArtifactUnreadable(f"{folder / WEIGHTS_INDEX} names {name}, and that file is not there.") from None
        except (SafetensorError, OSError) as error:
            size_bytes = path.stat().st_size
            raise ArtifactUnreadable(
                f"{path} ({size_bytes} bytes) is truncated or no safetensors file: {first_line(error)}"
            ) from error


def position_offset(backbone: torch.nn.Module) -> int:
    """The position of an item's first token: 0, or the pad id + 1 where positions are counted as in RoBERTa.

    Such models reserve the positions up to the pad id, and show it by a position table with a padding index.
    """
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings"):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def position_limit(config: Config, backbone: torch.nn.Module) -> int | None:
    """The longest item in tokens that the architecture has positions for; None where nothing says."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return limit - position_offset(backbone)


def table_limit(config: Config, backbone: torch.nn.Module) -> int | None:
    """The longest item in tokens that a position table has rows for; None where positions are computed as needed.

    OPT's table has two rows that no position reads, so the rows alone do not say it.
    """
    learnt = {
        name: module.weight for name, module in backbone.named_modules() if isinstance(module, torch.nn.Embedding)
    }
    for name, table in {**learnt, **dict(backbone.named_buffers())}.items():  # GPT-J's and CTRL's are not learnt
        if name.endswith(_POSITION_TABLES):
            rows = len(table) - position_offset(backbone)
            return min(rows, position_limit(config, backbone) or rows)
    return None


def _own_weights(model: Model) -> None:
    """Copies the weights out of the files that they are mapped from.

    Who writes into such a file would change the scores of a version that was checked, and who cuts it off would end the
    process.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
        let_go_of(tensor.nbytes)


def _refuse_mismatches(folder: Path, model: Model, info: dict[str, Any], replaced: Collection[str]) -> None:
    """transformers draws missing weights at random and says so in a log line: here it is an error."""
    own = tuple(f"{name}." for name in replaced)
    architecture, backbone = type(model).__name__, f"{model.base_model_prefix}."

    def is_left_over(name: str) -> bool:
        return name.endswith(_LEFT_OVER) or (bool(own) and not name.startswith(backbone))

    problems = [
        f"{title}: {_names(keys)}"
        for title, keys in (
            ("missing", sorted(key for key in info["missing_keys"] if not key.startswith(own))),
            (
                "of another shape",
                sorted(_mismatch(entry) for entry in info["mismatched_keys"] if not entry[0].startswith(own)),
            ),
            ("not known to the architecture", sorted(k for k in info["unexpected_keys"] if not is_left_over(k))),
            ("not loadable", sorted(map(str, info.get("error_msgs") or ()))),
        )
        if keys
    ]
    if problems:
        raise WeightsMismatch(
            f"The weights in {folder} are not those of {architecture}: {'; '.join(problems)}. "
            "A reward model is saved with its head; a plain language model or encoder has none and must be trained."
        )


def _mismatch(entry: Any) -> str:
    name, in_file, expected = entry
    return f"{name} {tuple(in_file)}, expected {tuple(expected)}"


def _names(keys: list[str]) -> str:
    shown = ", ".join(keys[:_NAMES_SHOWN])
    return shown if len(keys) <= _NAMES_SHOWN else f"{shown} and {len(keys) - _NAMES_SHOWN} more"
