"""Which version a selector means now: a pure decision, in the order lease, pin, split, label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rm_server.errors import LabelNotFound, NoDefaultVersion, RmError, VersionNotFound
from rm_server.registry.records import Snapshot, VersionKey
from rm_server.scoring.selector import Selector
from rm_server.scoring.split import choose_arm

DEFAULT_LABEL = "stable"
"""What a bare name means where neither a lease, nor a pin, nor a split says otherwise."""

ChosenBy: TypeAlias = Literal["number", "lease", "pin", "split", "label"]
"""What decided."""


@dataclass(frozen=True, slots=True)
class Route:
    """The version that was found. ``label``: the one that named it. ``arm``: of the split that chose it."""

    key: VersionKey
    digest: str
    label: str | None = None
    arm: str | None = None
    chosen_by: ChosenBy = "label"


def resolve(
    selector: Selector,
    snapshot: Snapshot,
    lease_version: int | None,
    *,
    run: str = "",
    now_s: float = 0.0,
    had_arm: str = "",
) -> Route:
    """``name@3``: that version. ``name@label``: what the label names. ``name``: what the run holds (``lease_version``),
    else its pin, else its arm of the model's split, else ``stable``.

    ``run`` empty: nobody's call, which neither pins nor splits concern. ``now_s``: since the epoch, for ramps.
    ``had_arm``: the arm that the run was given before. Raises ModelNotFound, VersionNotFound, LabelNotFound,
    NoDefaultVersion.
    """
    model = selector.model
    label, arm = None, None
    chosen_by: ChosenBy
    split = snapshot.splits.get(model) if run else None
    if selector.version is not None:
        version: int | None = selector.version
        chosen_by = "number"
    elif selector.label is not None:
        label = selector.label
        version, chosen_by = snapshot.labels.get((model, label)), "label"
    elif lease_version is not None:
        version, chosen_by = lease_version, "lease"
    elif run and (model, run) in snapshot.pins:
        version, chosen_by = snapshot.pins[model, run], "pin"
    elif split is not None and (chosen := choose_arm(split, run, now_s, had=had_arm)) is not None:
        version, arm, chosen_by = chosen.version, chosen.name, "split"
    else:
        label = DEFAULT_LABEL
        version, chosen_by = snapshot.labels.get((model, label)), "label"
    record = None if version is None else snapshot.versions.get((model, version))
    if record is None:
        raise _not_found(selector, snapshot, version)
    return Route(record.key, record.digest, label, arm, chosen_by)


def _not_found(selector: Selector, snapshot: Snapshot, version: int | None) -> RmError:
    model = selector.model
    versions = snapshot.versions_of(model)
    if not versions:
        return snapshot.unknown(model)
    if version is not None:
        return VersionNotFound(f"{model} has no version {version}; it has {', '.join(map(str, versions))}.")
    labels = ", ".join(snapshot.labels_of(model)) or "none"
    if selector.label is not None:
        return LabelNotFound(f"{model} has no label {selector.label!r}; it has {labels}.")
    return NoDefaultVersion(
        f"{model} has no label {DEFAULT_LABEL!r}, and no lease, pin or split gives the run a version, so its bare name "
        f"means none. Set that label, or ask for one of {', '.join(f'{model}@{number}' for number in versions)}; "
        f"labels: {labels}."
    )
