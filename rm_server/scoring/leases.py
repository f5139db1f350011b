"""The leases that this server knows, with their signs of life: state and rules, with the clock handed in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rm_server.errors import RunNotFound
from rm_server.registry.records import VersionKey
from rm_server.registry.run_records import Lease


class Leases:
    """The last lease of each run and model; one that is over is remembered, too.

    The catalog has all of them. Signs of life are kept here first and written there now and then (see `due`): for a
    lease of which the catalog hears nothing there are at least three quarters of its length left.
    """

    def __init__(self, max_known: int) -> None:
        """``max_known``: a tenth beyond it, leases that are over are forgotten, those that were given first first."""
        self._max_known = max_known
        self._look_beyond = max_known
        self._leases: dict[tuple[str, str], Lease] = {}
        # Who holds each loaded version is asked with every look at the catalog.
        self._of_version: defaultdict[VersionKey, set[tuple[str, str]]] = defaultdict(set)
        self._last_written: dict[tuple[str, str], float] = {}
        """Of the leases that were renewed since: the last sign of life that the catalog knows."""

    def put(self, lease: Lease, now: float) -> None:
        """What the catalog says of a run, or said: what is known to be newer is kept, as is a sign of life."""
        key = (lease.run, lease.model)
        known = self._take(key)
        if known is not None and (known.revision, known.last_seen) > (lease.revision, lease.last_seen):
            lease = known
        else:
            self._last_written.pop(key, None)
        self._leases[key] = lease
        self._of_version[lease.key].add(key)
        self._forget_some(now)

    def last(self, run: str, model: str) -> Lease | None:
        """What the run holds, or held last."""
        return self._leases.get((run, model))

    def active(self, run: str, model: str, now: float) -> Lease | None:
        """What the run holds."""
        lease = self._leases.get((run, model))
        return lease if lease is not None and lease.is_active(now) else None

    def renew(self, run: str, model: str, now: float) -> Lease:
        """A sign of life. Raises RunNotFound where the run has ended its lease, or never had one."""
        lease = self._leases.get((run, model))
        if lease is None or lease.has_ended:
            raise RunNotFound(f"The run {run!r} has no lease on {model!r}, or it has ended. Register the run again.")
        self._last_written.setdefault((run, model), lease.last_seen)
        self._leases[run, model] = lease = replace(lease, last_seen=now, expires_at=now + lease.lease_s)
        return lease

    def due(self, now: float, quiet_s: float) -> list[Lease]:
        """The signs of life to write: a quarter of the lease after the last one that was, or when the run has been
        quiet for ``quiet_s``, so that the catalog then knows exactly when the lease ends.
        """
        renewed = [(self._leases[key], written) for key, written in self._last_written.items()]
        return [
            lease
            for lease, written in renewed
            if lease.last_seen - written >= lease.lease_s / 4 or now - lease.last_seen >= quiet_s
        ]

    def unwritten(self) -> list[Lease]:
        """All signs of life that the catalog has not heard of."""
        return [self._leases[key] for key in self._last_written]

    def note_written(self, leases: Iterable[Lease]) -> None:
        """The catalog knows these signs of life."""
        for lease in leases:
            key = (lease.run, lease.model)
            present = self._leases.get(key)
            if present is None or present.revision != lease.revision:
                continue  # it was given another version meanwhile: of that one's signs of life nothing was written
            if present.last_seen <= lease.last_seen:
                self._last_written.pop(key, None)
            else:
                self._last_written[key] = lease.last_seen

    def holders(self, key: VersionKey, now: float) -> list[str]:
        """The runs that hold a version, sorted."""
        leases = (self._leases[run_and_model] for run_and_model in self._of_version.get(key, ()))
        return sorted(lease.run for lease in leases if lease.is_active(now))

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._leases.values()))

    def _take(self, key: tuple[str, str]) -> Lease | None:
        lease = self._leases.pop(key, None)
        if lease is not None:
            self._of_version[lease.key].discard(key)
        return lease

    def _forget_some(self, now: float) -> None:
        if len(self._leases) > self._look_beyond:
            over = [key for key, lease in self._leases.items() if not lease.is_active(now)]
            for key in over[: len(self._leases) - self._max_known]:
                self._take(key)
                self._last_written.pop(key, None)
            # Where most are held, looking through all of them for each new one would take longer than giving it.
            self._look_beyond = max(self._max_known, len(self._leases)) + self._max_known // 10
