"""`rules.json`: a weighted list of rules whose sum is the score.

    {"rules": [{"type": "token_id_share", "modulus": 2, "residue": 0},
               {"name": "brevity", "type": "length", "max": 80, "soft": 20, "weight": 0.5, "clip": [0, 1]}]}

Each rule adds weight * clip(gain * value + bias); ``value`` is what its kind says (`kinds`). ``of`` says what it
looks at: the completion (the default), the prompt, or both, joined with a line break where they are text.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from rm_server.backends.items import Int32Array
from rm_server.backends.json_file import read_json
from rm_server.backends.rules.kinds import RULE_KINDS, Looks, RuleKind
from rm_server.backends.rules.settings import is_finite_number, one_of
from rm_server.errors import UnsupportedArtifact

FILE_NAME = "rules.json"
_COMMON_KEYS = ("name", "type", "weight", "gain", "bias", "clip", "of")

Side: TypeAlias = Literal["completion", "prompt", "both"]
_SIDES: tuple[Side, ...] = ("completion", "prompt", "both")
Seen: TypeAlias = Int32Array | str
"""Token ids of shape (num_tokens,), or text."""


@dataclass(frozen=True)
class Scale:
    """What is made of a part's value before it is added: ``weight`` * clip(``gain`` * value + ``bias``)."""

    weight: float = 1.0
    gain: float = 1.0
    bias: float = 0.0
    clip: tuple[float, float] = (-math.inf, math.inf)  # low, high

    def part(self, value: float) -> float:
        """The value after gain, bias and clip."""
        low, high = self.clip
        return min(max(self.gain * value + self.bias, low), high)


@dataclass(frozen=True)
class Rule:
    """One rule of a list: adds ``scale.weight`` * `part`."""

    name: str
    kind: RuleKind
    scale: Scale = Scale()
    of: Side = "completion"

    def part(self, prompt: Seen, completion: Seen) -> float:
        """The rule's value after its own gain, bias and clip. What it looks at is never empty."""
        return self.scale.part(self.kind.value(self._seen(prompt, completion)))

    def _seen(self, prompt: Seen, completion: Seen) -> Seen:
        if self.of == "completion" or (self.of == "both" and len(prompt) == 0):
            return completion
        if self.of == "prompt":
            return prompt
        if isinstance(prompt, str):
            return f"{prompt}\n{completion}"
        return np.concatenate([prompt, cast(Int32Array, completion)])


@dataclass(frozen=True)
class RuleList:
    """All rules of a version. They look at token ids, all of them, or all at text."""

    rules: tuple[Rule, ...]

    @property
    def looks_at(self) -> Looks:
        """What the encoder has to ask for."""
        return self.rules[0].kind.looks_at

    @property
    def names_of_prompt_rules(self) -> tuple[str, ...]:
        """The rules that an item without a prompt cannot be judged by."""
        return tuple(rule.name for rule in self.rules if rule.of == "prompt")

    def parts(self, prompt: Seen, completion: Seen) -> list[float]:
        """What each rule gives, after its own gain, bias and clip, before its weight."""
        return [rule.part(prompt, completion) for rule in self.rules]

    def total(self, parts: Iterable[float]) -> float:
        """The weighted sum of the parts."""
        return sum(rule.scale.weight * part for rule, part in zip(self.rules, parts, strict=True))


def read_rules(folder: Path) -> RuleList:
    """Reads a version's rules. Raises ArtifactUnreadable, or UnsupportedArtifact for what is not known."""
    path = folder / FILE_NAME
    content = read_json(path)
    refuse_unknown(f"{path}: key", content, ("rules",))
    specs = content.get("rules")
    if not isinstance(specs, list) or not specs:
        raise UnsupportedArtifact(f"{path} needs a list `rules` with at least one rule.")
    return rule_list(path, [_parse(f"{path}: rule {number}", spec) for number, spec in enumerate(specs, 1)])


def rule_list(path: Path, rules: Iterable[Rule]) -> RuleList:
    """Rules that can be computed together. Raises UnsupportedArtifact."""
    rules = tuple(rules)
    names = [rule.name for rule in rules]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UnsupportedArtifact(f"{path}: the name {min(twice)!r} is used twice; give each rule a `name` of its own.")
    if len({rule.kind.looks_at for rule in rules}) > 1:
        looks = ", ".join(f"{rule.name}: {rule.kind.looks_at}" for rule in rules)
        raise UnsupportedArtifact(f"{path}: rules look either at token ids or at text, not at both ({looks}).")
    return RuleList(rules)


def _parse(where: str, spec: Any) -> Rule:
    if not isinstance(spec, dict):
        raise UnsupportedArtifact(f"{where} is no JSON object.")
    name = spec.get("name", spec.get("type"))
    if "name" in spec and (not isinstance(name, str) or not name):
        raise UnsupportedArtifact(f"{where}: name must be a text, not {name!r}.")
    return parse_rule(where, str(name), spec, parse_scale(where, spec), _COMMON_KEYS)


def parse_rule(where: str, name: str, spec: dict[str, Any], scale: Scale, common_keys: tuple[str, ...]) -> Rule:
    """A rule from its ``type``, ``of`` and the kind's own keys; of ``common_keys`` the caller takes care.

    Raises UnsupportedArtifact, with ``where`` it is.
    """
    kind_name = spec.get("type")
    if not isinstance(kind_name, str):
        raise UnsupportedArtifact(f"{where} has no `type`; known are {', '.join(RULE_KINDS)}.")
    refuse_unknown(f"{where}: type", [kind_name], RULE_KINDS)
    kind = RULE_KINDS[kind_name]
    own_keys = [f.name for f in fields(kind) if f.init]  # type: ignore[arg-type]
    refuse_unknown(f"{where} ({kind_name}): key", spec, (*common_keys, *own_keys))
    try:
        of = cast(Side, one_of(spec.get("of", "completion"), "of", _SIDES))
        settings = kind(**{key: spec[key] for key in own_keys if key in spec})
    except (TypeError, ValueError) as error:
        raise UnsupportedArtifact(f"{where} ({kind_name}): {error}.") from error
    return Rule(name, settings, scale, of)


def parse_scale(where: str, spec: dict[str, Any]) -> Scale:
    """``weight``, ``gain``, ``bias`` and ``clip`` of a part. Raises UnsupportedArtifact."""
    numbers = {key: finite_number_at(where, key, spec[key]) for key in ("weight", "gain", "bias") if key in spec}
    return Scale(**numbers, clip=_clip(where, spec))


def _clip(where: str, spec: dict[str, Any]) -> tuple[float, float]:
    if "clip" not in spec:
        return (-math.inf, math.inf)
    clip = spec["clip"]
    if not isinstance(clip, list) or len(clip) != 2:
        raise UnsupportedArtifact(f"{where}: clip must be [low, high], not {clip!r}.")
    low, high = (finite_number_at(where, "clip", end) for end in clip)
    if low > high:
        raise UnsupportedArtifact(f"{where}: clip is [{low}, {high}], and low must not be above high.")
    return (low, high)


def finite_number_at(where: str, key: str, value: Any) -> float:
    """The number. Raises UnsupportedArtifact for what is none, or not finite."""
    if not is_finite_number(value):
        raise UnsupportedArtifact(f"{where}: {key} must be a finite number, not {value!r}.")
    return float(value)


def refuse_unknown(where: str, came: Iterable[str], known: Iterable[str]) -> None:
    """Raises UnsupportedArtifact for a name that is not known, with the nearest one."""
    for name in came:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnsupportedArtifact(f"{where} {name!r} is not known; known are {', '.join(known)}.{hint}")
