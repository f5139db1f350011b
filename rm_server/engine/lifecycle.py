"""Where versions are and where they should be: what to load and unload next, and what a label names meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rm_server.registry.records import VersionKey

State: TypeAlias = Literal["REGISTERED", "LOADING", "READY", "DRAINING", "FAILED", "PAGED_OUT"]
"""REGISTERED → LOADING → READY → DRAINING → REGISTERED; from LOADING to FAILED, and from there to LOADING again.

From DRAINING also to PAGED_OUT: wanted, and out of memory until the next request for it; then LOADING.
"""

SERVING: tuple[State, ...] = ("READY", "PAGED_OUT")
"""States in which a request gets its score, at once or after a load."""

Policy: TypeAlias = Literal["availability", "resource"]
"""``availability``: load the new before unloading the old. ``resource``: unload first; nothing serves in between."""

Labels: TypeAlias = Mapping[tuple[str, str], int]
"""(model, label) to version."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do now."""

    what: Literal["load", "unload"]
    key: VersionKey


def next_steps(
    wanted: Set[VersionKey], actual: Mapping[VersionKey, State], policy: Policy = "availability"
) -> list[Step]:
    """What may begin now, all at once; unloads first, each kind sorted. Nothing when nothing is left to do.

    A version that is not in ``actual`` is REGISTERED. One that FAILED is left alone: somebody has to look at it. So is
    one that is PAGED_OUT: a request brings it back.
    """
    return [
        *(Step("unload", key) for key in sorted(actual) if _may_unload(key, wanted, actual, policy)),
        *(Step("load", key) for key in sorted(wanted) if _may_load(key, wanted, actual, policy)),
    ]


def _may_unload(key: VersionKey, wanted: Set[VersionKey], actual: Mapping[VersionKey, State], policy: Policy) -> bool:
    if key in wanted or actual[key] != "READY":
        return False
    states = [actual.get(other, "REGISTERED") for other in wanted if other[0] == key[0]]
    if policy == "resource" or not states:
        return True
    # Its successor serves, and none is still to come. If all of them failed, the old one goes on serving.
    return any(state in SERVING for state in states) and not {"REGISTERED", "LOADING"} & set(states)


def _may_load(key: VersionKey, wanted: Set[VersionKey], actual: Mapping[VersionKey, State], policy: Policy) -> bool:
    if actual.get(key, "REGISTERED") != "REGISTERED":
        return False
    return policy == "availability" or not any(
        other[0] == key[0] and other not in wanted and state in ("READY", "DRAINING") for other, state in actual.items()
    )


def served_labels(catalog: Labels, served: Labels, ready: Set[VersionKey]) -> dict[tuple[str, str], int]:
    """What each label names for requests: what the catalog says, once that version is ready.

    Until then a label that somebody moved in the catalog, not through this server, goes on naming what it named
    (``served``), as long as that is ready: a label never names a version that is not loaded if there is a choice.
    """
    labels = {}
    for (model, label), version in catalog.items():
        before = served.get((model, label))
        is_waiting = (model, version) not in ready and before is not None and (model, before) in ready
        labels[model, label] = before if is_waiting and before is not None else version
    return labels
