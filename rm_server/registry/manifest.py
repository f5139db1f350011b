"""`reward_model.json`: what a version's folder says about how it turns prompt and completion into a score."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact

FILE_NAME = "reward_model.json"

Kind: TypeAlias = Literal["sequence_classification", "lora", "onnx", "rules", "composite"]
"""What a version is made of. Who knows of kinds, and is to be told of a new one: its files, `layout`; those that a
folder without a manifest is known by, `backends.plain_folder`; what reads and what computes, `backends.loading`; its
memory, `backends.footprint`; other versions that it needs, `home`, `parts`, `in_use` and `Deployment.load`; what it
must show, `engine.checks`; and `training.export` and `training.tuning`, what they take.
"""
TruncationRule: TypeAlias = Literal["refuse", "keep_end", "keep_start"]
Transform: TypeAlias = Literal["raw_logit", "sigmoid", "rule", "weighted_sum"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]

KINDS: tuple[Kind, ...] = ("sequence_classification", "lora", "onnx", "rules", "composite")
KINDS_WITHOUT_WEIGHTS: tuple[Kind, ...] = ("rules", "composite")
"""They take next to no memory, have no precision to choose, and may give every text the same score."""

TRUNCATION_RULES: tuple[TruncationRule, ...] = ("refuse", "keep_end", "keep_start")
TRANSFORMS: tuple[Transform, ...] = ("raw_logit", "sigmoid", "rule", "weighted_sum")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")

_TYPES: Mapping[str, type] = {
    "template": str,
    "append_eos": bool,
    "trim_padding": bool,
    "add_special_tokens": bool,
    "max_tokens": int,
    "label_index": int,
}

_NOT_SCORE_DECIDING = ("golden", "tolerance")
_LARGEST_NUMBER = 2**31 - 1
"""More has no room in catalogs and messages: one such version, and no list of models could be sent."""

PAIR_TEMPLATE = "pair"
CHAT_TEMPLATE = "chat"
_PLACES = ("prompt", "completion")


@dataclass(frozen=True, slots=True)
class GoldenExample:
    """An item with the raw score that this version gives it in fp32. Prompt and completion are text, or token ids."""

    prompt: str | tuple[int, ...]
    completion: str | tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """What decides how a version reads its input; written beside the weights.

    ``template``: ``"pair"`` gives prompt and completion to the tokenizer as a pair of segments; ``"chat"`` uses the
    tokenizer's chat template (text is taken as one user and one assistant turn); anything else is a format with
    ``{prompt}`` and ``{completion}``, joined before tokenising.
    ``append_eos``: the EOS token follows the completion, as TRL's RewardTrainer trains it.
    ``trim_padding``: the model's pad ids at an item's end are cut off: transformers' decoders read the score before
    them, also where they stand for the EOS.
    ``add_special_tokens``: the tokenizer's own additions ([CLS], BOS, …).
    ``max_tokens``: longest item in tokens, special tokens included; 0: no limit (rules).
    ``label_index``: which logit of a classifier is the score; 0 for a scalar head.
    ``precision``: the only one that the version can compute in (an ONNX file has its own); empty: as the load says.
    ``tolerance``: the largest |score - golden score| at load, per precision.
    """

    kind: Kind
    template: str = "{prompt}{completion}"
    append_eos: bool = False
    trim_padding: bool = False
    add_special_tokens: bool = True
    max_tokens: int = 0
    truncation: TruncationRule = "refuse"
    label_index: int = 0
    transform: Transform = "raw_logit"
    precision: Precision | Literal[""] = ""
    golden: tuple[GoldenExample, ...] = ()
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"fp32": 1e-3, "bf16": 0.15, "fp16": 0.02})

    def __post_init__(self) -> None:
        self._check_types()
        for name, value, allowed in (
            ("kind", self.kind, KINDS),
            ("truncation", self.truncation, TRUNCATION_RULES),
            ("transform", self.transform, TRANSFORMS),
            ("precision", self.precision, ("", *PRECISIONS)),
        ):
            if value not in allowed:
                raise UnsupportedArtifact(f"{FILE_NAME}: {name} is {value!r}; known are {', '.join(allowed)}.")
        self._check_template()

    @property
    def reads_prompt(self) -> bool:
        """Whether the template has a place for the prompt; without one an item is scored by its completion alone."""
        return self.template in (PAIR_TEMPLATE, CHAT_TEMPLATE) or "{prompt}" in self.template

    @property
    def reads_apart(self) -> bool:
        """Whether something comes between prompt and completion, so that the two as one text are read otherwise."""
        if self.template in (PAIR_TEMPLATE, CHAT_TEMPLATE):
            return self.template == PAIR_TEMPLATE
        return "{prompt}" in self.template and self.template != "{prompt}{completion}"

    def _check_template(self) -> None:
        """A misspelt place would be read as plain text, and what belongs there by nobody."""
        if self.template in (PAIR_TEMPLATE, CHAT_TEMPLATE):
            return
        for word in re.findall(r"\{(\s*\w+\s*)\}", self.template):
            if word not in _PLACES:
                near = difflib.get_close_matches(word.strip().lower(), _PLACES, n=1)
                hint = f"; did you mean {{{near[0]}}}?" if near else "."
                raise UnsupportedArtifact(
                    f"{FILE_NAME}: template {self.template!r} has {{{word}}}, and only {{prompt}} and {{completion}} "
                    f"are filled in{hint}"
                )
        if "{completion}" not in self.template:
            raise UnsupportedArtifact(
                f"{FILE_NAME}: template {self.template!r} has no {{completion}}; "
                f"use {PAIR_TEMPLATE!r}, {CHAT_TEMPLATE!r} or a text with {{prompt}} and {{completion}}."
            )

    def _check_types(self) -> None:
        """A file may say anything; what it says must not come to light only when a request is computed."""
        for name, kind in _TYPES.items():
            value = getattr(self, name)
            if type(value) is not kind or (isinstance(value, int) and not 0 <= value <= _LARGEST_NUMBER):
                expected = (
                    f"a whole number from 0 to {_LARGEST_NUMBER}"
                    if kind is int
                    else {str: "text", bool: "true or false"}[kind]
                )
                raise UnsupportedArtifact(f"{FILE_NAME}: {name} is {value!r}; {expected} is expected.")
        for precision, allowed in self.tolerance.items():
            if precision not in PRECISIONS:
                raise UnsupportedArtifact(
                    f"{FILE_NAME}: tolerance.{precision} is of no precision; known are {', '.join(PRECISIONS)}."
                )
            if not (isinstance(allowed, int | float) and 0 <= allowed < math.inf):
                raise UnsupportedArtifact(
                    f"{FILE_NAME}: tolerance.{precision} is {allowed!r}; a finite number from 0 is expected."
                )

    def score_deciding(self) -> dict[str, Any]:
        """The part that belongs to the digest: everything except golden examples and tolerances."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_SCORE_DECIDING}

    def golden_json(self) -> str | None:
        """Golden examples and tolerances alone, for the catalog; None: there are no examples."""
        if not self.golden:
            return None
        content = asdict(self)
        return json.dumps({name: content[name] for name in _NOT_SCORE_DECIDING}, ensure_ascii=False)

    def to_json(self) -> str:
        """The text of the file: indented, keys in the order of the fields, newline at the end."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into a version's folder."""
    (folder / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")


def read_manifest(folder: Path, golden_json: str | None = None) -> Manifest:
    """Reads a version's manifest. ``golden_json`` (a version's record has it) says what it says of golden examples.

    Raises ArtifactUnreadable when it is missing or no JSON, UnsupportedArtifact for unknown keys and values.
    """
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactUnreadable(
            f"{folder} has no {FILE_NAME}; `rm-server register --home DIR` makes one for a plain Hugging Face folder."
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactUnreadable(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or "kind" not in content:
        raise ArtifactUnreadable(f"{path} is not a JSON object with a `kind`.")
    unknown = sorted(set(content) - {f.name for f in fields(Manifest)})
    if unknown:
        raise UnsupportedArtifact(f"{path} has keys that this version does not know: {', '.join(unknown)}.")
    if golden_json is not None:
        content |= json.loads(golden_json)
    try:
        golden = tuple(_golden_example(path, example) for example in content.pop("golden", ()))
        return Manifest(golden=golden, **content)
    except (AttributeError, TypeError) as error:
        raise ArtifactUnreadable(f"{path}: {error}") from error


def _golden_example(path: Path, example: Any) -> GoldenExample:
    try:
        read = GoldenExample(
            prompt=_content(example["prompt"]),
            completion=_content(example["completion"]),
            score=float(example["score"]),
        )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ArtifactUnreadable(f"{path}: a golden example needs prompt, completion, score: {error!r}") from error
    if not math.isfinite(read.score):
        raise UnsupportedArtifact(f"{path}: a golden example's score is {read.score}; with that nothing is checked.")
    return read


def _content(value: Any) -> str | tuple[int, ...]:
    return value if isinstance(value, str) else tuple(int(token) for token in value)
