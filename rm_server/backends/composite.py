"""A composite: other versions and rules of its own, and how what they give becomes one score. Pure but for reading.

score = sum of weight * clip(gain * value + bias) over the components; ``value`` is the version's raw score (calibrated
first where the component says so), or what the rule's kind says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_server.backends.explanation import Reading
from rm_server.backends.items import Content, EncodedItem
from rm_server.backends.rules.backend import RulesEncoder
from rm_server.backends.rules.rule_list import (
    Rule,
    RuleList,
    Scale,
    finite_number_at,
    parse_rule,
    parse_scale,
    refuse_unknown,
    rule_list,
)
from rm_server.errors import RmError, UnsupportedArtifact, UnsupportedContent
from rm_server.registry.composite import FILE_NAME, read_components
from rm_server.registry.manifest import Manifest, TruncationRule
from rm_server.registry.names import is_digest
from rm_server.registry.records import CalibrationRecord, VersionKey, version_name
from rm_server.registry.vocabulary import read_vocabulary_digest

OTHER_IDS = UnsupportedContent(
    "Token ids came, and this composite's versions have different tokenizers: an id does not mean the same to all of "
    "them. Send text."
)

OWN_RULES = "The composite's own rules"
"""As errors name them."""

_SCALE_KEYS = ("weight", "gain", "bias", "clip")
_VERSION_KEYS = ("name", "version", "digest", *_SCALE_KEYS, "calibrated", "calibration")
_RULE_KEYS = ("name", "rule", *_SCALE_KEYS)


@dataclass(frozen=True)
class VersionPart:
    """A component that is a version. ``calibration``: what its raw scores go through first; None: nothing."""

    name: str
    scale: Scale
    version: VersionKey
    digest: str
    calibration: CalibrationRecord | None = None

    @property
    def title(self) -> str:
        """As errors name it."""
        return f"Component {self.name!r} ({version_name(self.version)})"

    @property
    def slope(self) -> float:
        """How much the sum changes, at most, where the version's raw score changes by 1."""
        return abs(self.scale.weight * self.scale.gain * (1.0 if self.calibration is None else self.calibration.gain))

    def part(self, raw: float) -> float:
        """What the version's raw score counts as, before the weight."""
        if self.calibration is not None:
            raw = self.calibration.apply(raw)
        return self.scale.part(raw)


@dataclass(frozen=True)
class Composite:
    """All components, in the order of the file."""

    parts: tuple[VersionPart | Rule, ...]

    @property
    def versions(self) -> dict[VersionKey, VersionPart]:
        """The versions it is made of, each once, with the first component that names it."""
        found: dict[VersionKey, VersionPart] = {}
        for part in self.parts:
            if isinstance(part, VersionPart):
                found.setdefault(part.version, part)
        return found

    @property
    def rules(self) -> RuleList:
        """The composite's own rules."""
        return RuleList(tuple(part for part in self.parts if isinstance(part, Rule)))

    def values(self, raw: Mapping[VersionKey, float], of_rules: Sequence[float]) -> list[float]:
        """What each component counts as, before its weight.

        ``raw``: the versions' raw scores; ``of_rules``: what `RuleList.parts` of the own rules gives.
        """
        rules = iter(of_rules)
        return [part.part(raw[part.version]) if isinstance(part, VersionPart) else next(rules) for part in self.parts]

    def total(self, values: Sequence[float]) -> float:
        """The weighted sum of the values."""
        return sum(part.scale.weight * value for part, value in zip(self.parts, values, strict=True))


class CompositeEncoder:
    """Encodes what the composite's own rules look at; what its versions look at, their own encoders do."""

    def __init__(self, composite: Composite, manifest: Manifest) -> None:
        self.composite = composite
        self._of_rules = RulesEncoder(composite.rules, manifest) if composite.rules.rules else None

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """None here: what its own rules give is put together with what its versions give."""
        return ()

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        """Never: each part encodes for itself."""
        return [None] * len(pairs)

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        """Encodes one item for the own rules. Raises what `RulesEncoder.encode` raises."""
        if self._of_rules is None:
            raise UnsupportedContent("This composite has no rules of its own.")
        return self._of_rules.encode(prompt, completion, truncation)

    def explain(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> Reading:
        """How its own rules read the item. Raises what `RulesEncoder.explain` raises."""
        if self._of_rules is None:
            raise UnsupportedContent("This composite has no rules of its own.")
        return self._of_rules.explain(prompt, completion, truncation)


def read_composite(folder: Path, *, is_pinned: bool = True) -> Composite:
    """Reads a composite. ``is_pinned`` False: as its author wrote it, with labels perhaps, and without digests.

    Raises ArtifactUnreadable, or UnsupportedArtifact for what makes no sense.
    """
    path = folder / FILE_NAME
    parts = [
        _parse(f"{path}: component {number}", spec, is_pinned) for number, spec in enumerate(read_components(folder), 1)
    ]
    names = [part.name for part in parts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UnsupportedArtifact(f"{path}: the name {min(twice)!r} is used twice; give each component its own.")
    rule_list(path, [part for part in parts if isinstance(part, Rule)])
    return Composite(tuple(parts))


def of_part(title: str, error: RmError) -> RmError:
    """The same error, with the part that it comes from."""
    return type(error)(f"{title}: {error.message}", retry_after_s=error.retry_after_s)


def mean_the_same_by_ids(folders: Iterable[Path]) -> bool:
    """Whether an id means the same to all versions of a composite, of which these are; rules have no vocabulary.

    Raises ArtifactUnreadable.
    """
    return len({vocabulary for folder in folders if (vocabulary := read_vocabulary_digest(folder))}) <= 1


def _parse(where: str, spec: dict[str, Any], is_pinned: bool) -> VersionPart | Rule:
    name = spec.get("name")
    if not isinstance(name, str) or not name:
        raise UnsupportedArtifact(f"{where}: name must be a text, not {name!r}.")
    where = f"{where} ({name})"
    if ("version" in spec) == ("rule" in spec):
        raise UnsupportedArtifact(f"{where}: either `version` or `rule` is needed.")
    if "label_index" in spec:
        raise UnsupportedArtifact(
            f"{where}: which label's logit is the score is part of the version: register it with --label-index."
        )
    refuse_unknown(f"{where}: key", spec, _VERSION_KEYS if "version" in spec else _RULE_KEYS)
    scale = parse_scale(where, spec)
    if "rule" not in spec:
        return _version_part(where, name, scale, spec, is_pinned)
    rule = spec["rule"]
    if not isinstance(rule, dict):
        raise UnsupportedArtifact(f"{where}: rule is no JSON object.")
    if misplaced := sorted(set(rule) & {"name", *_SCALE_KEYS}):
        raise UnsupportedArtifact(f"{where}: {', '.join(misplaced)} belongs to the component, beside `rule`.")
    return parse_rule(where, name, rule, scale, ("type", "of"))


def _version_part(where: str, name: str, scale: Scale, spec: dict[str, Any], is_pinned: bool) -> VersionPart:
    model, _, which = str(spec["version"]).rpartition("@")
    digest = spec.get("digest", "")
    is_calibrated = spec.get("calibrated", False)
    if not isinstance(is_calibrated, bool):
        raise UnsupportedArtifact(f"{where}: calibrated must be true or false, not {is_calibrated!r}.")
    if not isinstance(digest, str) or (digest and not is_digest(digest)):
        raise UnsupportedArtifact(f"{where}: digest must be 64 lower-case hexadecimal digits, not {digest!r}.")
    calibration = _calibration(where, spec["calibration"]) if "calibration" in spec else None
    if calibration is not None and not is_calibrated:
        raise UnsupportedArtifact(f"{where}: there is a calibration, and `calibrated` is not true.")
    if is_pinned and not (model and which.isdecimal() and digest and is_calibrated == (calibration is not None)):
        raise UnsupportedArtifact(f"{where}: version must be pinned to a number and a digest; register it to do so.")
    return VersionPart(name, scale, (model, int(which) if which.isdecimal() else 0), digest, calibration)


def _calibration(where: str, spec: Any) -> CalibrationRecord:
    if not isinstance(spec, dict) or set(spec) != {"digest", "gain", "bias"} or not is_digest(str(spec["digest"])):
        raise UnsupportedArtifact(f"{where}: calibration needs digest, gain and bias.")
    gain, bias = (finite_number_at(f"{where}: calibration", key, spec[key]) for key in ("gain", "bias"))
    if gain == 0:
        raise UnsupportedArtifact(f"{where}: calibration.gain must not be 0.")
    return CalibrationRecord(spec["digest"], gain, bias)
