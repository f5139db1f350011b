"""Which versions make room for another one, and when: decisions without clock, lock or I/O."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rm_server.backends.interface import SharedMemory
from rm_server.registry.records import VersionKey


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded version. ``own_bytes`` are freed with it, ``shared`` with the last that shares it.

    ``last_used`` on any clock. ``may_go``: nobody needs it (a lease, a shadow, an arm of a split, a pin, a composite
    made of it). A label alone keeps no version: it comes back with its next request. ``is_busy``: a request holds it,
    or it is on its way out. ``stays_until``, on the same clock: it came back for a request, and so soon it does not go.
    """

    key: VersionKey
    own_bytes: int
    last_used: float
    may_go: bool
    shared: SharedMemory | None = None
    is_busy: bool = False
    stays_until: float = 0.0


def choose_to_go(residents: Sequence[Resident], missing_bytes: int, now: float) -> list[VersionKey] | None:
    """The versions to page out so that ``missing_bytes`` are freed, least recently used first, and none in vain.

    None: not even all that may go now would do; then none should.
    """
    may_go = [one for one in residents if one.may_go and not one.is_busy and one.stays_until <= now]
    chosen: list[Resident] = []
    for resident in sorted(may_go, key=lambda one: one.last_used):
        if freed_bytes(residents, chosen) >= missing_bytes:
            break
        chosen.append(resident)
    if freed_bytes(residents, chosen) < missing_bytes:
        return None
    for resident in reversed(chosen.copy()):
        others = [other for other in chosen if other is not resident]
        if freed_bytes(residents, others) >= missing_bytes:
            chosen = others
    return [resident.key for resident in chosen]


def room_from(residents: Sequence[Resident], missing_bytes: int, now: float) -> float | None:
    """From when on ``missing_bytes`` can be freed if those that are busy are done by then; None: never.

    ``now``: by those that may go now, or when some of those that are busy are done.
    """
    for moment in sorted({now, *(one.stays_until for one in residents if one.stays_until > now)}):
        going = [one for one in residents if one.may_go and one.stays_until <= moment]
        if freed_bytes(residents, going) >= missing_bytes:
            return moment
    return None


def freed_bytes(residents: Sequence[Resident], going: Collection[Resident]) -> int:
    """What is free when those have gone."""
    kept = {resident.shared.name for resident in residents if resident.shared and resident not in going}
    shared = {resident.shared.name: resident.shared.num_bytes for resident in going if resident.shared}
    return sum(resident.own_bytes for resident in going) + sum(shared[name] for name in shared.keys() - kept)
