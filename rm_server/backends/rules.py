"""`rules.json`: a weighted list of rules whose sum is the score.

    {"rules": [{"type": "token_id_share", "modulus": 2, "residue": 0},
               {"name": "brevity", "type": "length", "max": 80, "soft": 20, "weight": 0.5, "clip": [0, 1]}]}

Each rule adds weight * clip(gain * value + bias); ``value`` is what its kind says (`rule_kinds`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rm_server.backends.items import Int32Array
from rm_server.backends.json_file import read_json
from rm_server.backends.rule_kinds import RULE_KINDS, Looks, RuleKind
from rm_server.errors import UnsupportedArtifact

FILE_NAME = "rules.json"
_COMMON_KEYS = ("name", "type", "weight", "gain", "bias", "clip")


@dataclass(frozen=True)
class Rule:
    """One rule of a list: adds ``weight`` * `part`."""

    name: str
    kind: RuleKind
    weight: float = 1.0
    gain: float = 1.0
    bias: float = 0.0
    clip: tuple[float, float] = (-math.inf, math.inf)  # low, high

    def part(self, completion: Int32Array | str) -> float:
        """The rule's value after its own gain, bias and clip."""
        low, high = self.clip
        return min(max(self.gain * self.kind.value(completion) + self.bias, low), high)


@dataclass(frozen=True)
class RuleList:
    """All rules of a version. They look at token ids, all of them, or all at text."""

    rules: tuple[Rule, ...]

    @property
    def looks_at(self) -> Looks:
        """What the encoder has to ask for."""
        return self.rules[0].kind.looks_at

    def score(self, completion: Int32Array | str) -> float:
        """The sum over the rules for a completion: ids of shape (num_tokens,), or text."""
        return sum(rule.weight * rule.part(completion) for rule in self.rules)


def read_rules(folder: Path) -> RuleList:
    """Reads a version's rules. Raises ArtifactUnreadable, or UnsupportedArtifact for what is not known."""
    path = folder / FILE_NAME
    content = read_json(path)
    _refuse_unknown(f"{path}: key", content, ("rules",))
    specs = content.get("rules")
    if not isinstance(specs, list) or not specs:
        raise UnsupportedArtifact(f"{path} needs a list `rules` with at least one rule.")
    rules = tuple(_parse(f"{path}: rule {number}", spec) for number, spec in enumerate(specs, 1))
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
    kind_name = spec.get("type")
    if not isinstance(kind_name, str):
        raise UnsupportedArtifact(f"{where} has no `type`; known are {', '.join(RULE_KINDS)}.")
    _refuse_unknown(f"{where}: type", [kind_name], RULE_KINDS)
    kind = RULE_KINDS[kind_name]
    own_keys = [f.name for f in fields(kind) if f.init]  # type: ignore[arg-type]
    _refuse_unknown(f"{where} ({kind_name}): key", spec, (*_COMMON_KEYS, *own_keys))
    name = spec.get("name", kind_name)
    if not isinstance(name, str) or not name:
        raise UnsupportedArtifact(f"{where}: name must be a text, not {name!r}.")
    numbers = {key: _finite(where, key, spec[key]) for key in ("weight", "gain", "bias") if key in spec}
    try:
        settings = kind(**{key: spec[key] for key in own_keys if key in spec})
    except (TypeError, ValueError) as error:
        raise UnsupportedArtifact(f"{where} ({kind_name}): {error}.") from error
    return Rule(name, settings, **numbers, clip=_clip(where, spec))


def _clip(where: str, spec: dict[str, Any]) -> tuple[float, float]:
    if "clip" not in spec:
        return (-math.inf, math.inf)
    clip = spec["clip"]
    if not isinstance(clip, list) or len(clip) != 2:
        raise UnsupportedArtifact(f"{where}: clip must be [low, high], not {clip!r}.")
    low, high = (_finite(where, "clip", end) for end in clip)
    if low > high:
        raise UnsupportedArtifact(f"{where}: clip is [{low}, {high}], and low must not be above high.")
    return (low, high)


def _finite(where: str, key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UnsupportedArtifact(f"{where}: {key} must be a finite number, not {value!r}.")
    return float(value)


def _refuse_unknown(where: str, came: Iterable[str], known: Iterable[str]) -> None:
    for name in came:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnsupportedArtifact(f"{where} {name!r} is not known; known are {', '.join(known)}.{hint}")
