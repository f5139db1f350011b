"""Which version each run holds, and for how long: state and rules, with the clock handed in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rm_server.errors import RunNotFound
from rm_server.registry.records import VersionKey


@dataclass(frozen=True, slots=True)
class Lease:
    """A run's hold on a version, until ``lease_s`` after ``last_seen`` or the run says so; times since the epoch, in s.

    ``arm``: of the split that chose the version; None: no split did. ``has_ended``: the run said so.
    """

    run: str
    model: str
    version: int
    digest: str
    arm: str | None
    lease_s: float
    last_seen: float
    expires_at: float
    has_ended: bool = False

    @property
    def key(self) -> VersionKey:
        """(model, version)."""
        return (self.model, self.version)

    def is_active(self, now: float) -> bool:
        """Whether it keeps its version from being unloaded."""
        return now < self.expires_at


class Leases:
    """The last lease of each run and model. One that is over is remembered: the run gets that version again.

    They are in memory alone: a server that starts anew knows none.
    """

    def __init__(self, max_known: int) -> None:
        """``max_known``: beyond it, leases that are over are forgotten, those that were taken first first."""
        self._max_known = max_known
        self._leases: dict[tuple[str, str], Lease] = {}

    def take(
        self, run: str, model: str, version: int, digest: str, *, arm: str | None, lease_s: float, now: float
    ) -> Lease:
        """The run holds this version from now on, in place of what it held of the model."""
        self._leases.pop((run, model), None)
        lease = Lease(run, model, version, digest, arm, lease_s, now, now + lease_s)
        self._leases[run, model] = lease
        self._forget_some(now)
        return lease

    def last(self, run: str, model: str) -> Lease | None:
        """What the run holds, or held last."""
        return self._leases.get((run, model))

    def active(self, run: str, model: str, now: float) -> Lease | None:
        """What the run holds."""
        lease = self._leases.get((run, model))
        return lease if lease is not None and lease.is_active(now) else None

    def renew(self, run: str, model: str, now: float) -> Lease:
        """A sign of life. Raises RunNotFound where the run holds nothing (any more)."""
        lease = self.active(run, model, now)
        if lease is None:
            raise RunNotFound(f"The run {run!r} has no lease on {model!r}, or it has ended. Register the run again.")
        self._leases[run, model] = lease = replace(lease, last_seen=now, expires_at=now + lease.lease_s)
        return lease

    def end(self, run: str, model: str | None, now: float) -> int:
        """Ends the run's lease on a model, or all of its leases (None); how many were active.

        Raises RunNotFound where the run never had one.
        """
        known = [lease for lease in self._leases.values() if lease.run == run and model in (None, lease.model)]
        if not known:
            raise RunNotFound(f"The run {run!r} has no lease" + (f" on {model!r}." if model is not None else "."))
        for lease in known:
            ended = replace(lease, expires_at=min(now, lease.expires_at), has_ended=True)
            self._leases[run, lease.model] = ended
        return sum(lease.is_active(now) for lease in known)

    def holders(self, key: VersionKey, now: float) -> list[str]:
        """The runs that hold a version, sorted."""
        return sorted(lease.run for lease in self._leases.values() if lease.key == key and lease.is_active(now))

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._leases.values()))

    def _forget_some(self, now: float) -> None:
        if len(self._leases) > self._max_known:
            over = [key for key, lease in self._leases.items() if not lease.is_active(now)]
            for key in over[: len(self._leases) - self._max_known]:
                del self._leases[key]
