"""Training runs on this server: their leases, what they were scored with, and the version their bare selector means."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rm_server.config import RunSettings
from rm_server.engine.versions import VersionManager
from rm_server.errors import InvalidRequest, VersionChanged, VersionNotLoaded
from rm_server.registry.records import VersionKey
from rm_server.scoring.leases import Lease, Leases
from rm_server.scoring.routing import Route, resolve
from rm_server.scoring.run_statistics import AllRunStatistics, RunStatistics
from rm_server.scoring.selector import Selector, parse

SHORTEST_LEASE_S = 10.0
LONGEST_LEASE_S = 7 * 24 * 3600.0

_RUN = re.compile(r"[A-Za-z0-9._:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What the server knows of a run on a model. Times in seconds since the epoch.

    Mean and deviation are of the raw scores by ``version``, the one that scored it last. ``lease_expires_at`` None: it
    has no lease.
    """

    run: str
    model: str
    version: int
    arm: str | None
    items: int
    tokens: int
    score_mean: float
    score_std: float
    last_seen: float
    lease_expires_at: float | None


class Runs:
    """All runs. A run that scores by the bare name gets a lease by that, too, and gives a sign of life each time."""

    def __init__(
        self, versions: VersionManager, settings: RunSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        """``clock`` in seconds since the epoch."""
        self._versions = versions
        self._lease_s = settings.lease_s
        self._clock = clock
        self._leases = Leases(settings.max_known_runs)
        self._statistics = AllRunStatistics(settings.max_known_runs)
        versions.add_guard(self._need_of)

    def register(
        self, run: str, model: str, *, lease_s: float = 0.0, expected_digest: str = "", move: bool = False
    ) -> tuple[Lease, bool]:
        """Gives the run a lease on a version; True: it is the version that the run had before.

        ``lease_s`` 0: the server's own. ``move``: not what it had, but what the bare name means without a lease.
        Raises InvalidRequest, what `resolve` raises, VersionNotLoaded, and VersionChanged where the version has not the
        expected digest.
        """
        check_run(run)
        if lease_s and not SHORTEST_LEASE_S <= lease_s <= LONGEST_LEASE_S:
            raise InvalidRequest(
                f"lease_seconds is {lease_s:g}; {SHORTEST_LEASE_S:g} to {LONGEST_LEASE_S:g}, or 0, was expected."
            )
        selector = parse(model)
        if not selector.is_bare:
            raise InvalidRequest(f"A lease is on the bare name of a model, not on {model!r}.")
        had = self._leases.last(run, model)
        route = resolve(selector, self._versions.snapshot, None if had is None or move else had.version)
        if expected_digest and expected_digest != route.digest:
            raise VersionChanged(
                f"The run {run!r} expected digest {expected_digest}, and would be given {_name(route.key)} with "
                f"{route.digest}. Score by the version's number, or register without an expected digest."
            )
        if self._versions.state_of(route.key).state != "READY":
            raise VersionNotLoaded(
                f"The run {run!r} would be given {_name(route.key)}, which is not loaded. Load it, or register with "
                "`move` to get what the bare name means now."
            )
        is_resumed = had is not None and not move
        lease = self._take(run, route, had.arm if had is not None and is_resumed else route.arm, lease_s)
        return lease, is_resumed

    def renew(self, run: str, model: str) -> Lease:
        """A sign of life. Raises RunNotFound."""
        return self._leases.renew(run, model, self._clock())

    def end(self, run: str, model: str | None = None) -> None:
        """Ends the run's lease on a model, or all (None). Raises RunNotFound."""
        self._leases.end(run, model, self._clock())

    def route(self, selector: Selector, run: str) -> Route:
        """Which version a call of this run means now.

        By the bare name a run means the version that it was given, until it ends or asks to move: after a pause longer
        than its lease, too. This server remembers that only until it is started anew.

        Raises InvalidRequest, what `resolve` raises, and VersionNotLoaded where the run's version is away.
        """
        if run:
            check_run(run)
        lease = self._given(selector, run)
        if lease is None:
            return resolve(selector, self._versions.snapshot, None)
        route = resolve(selector, self._versions.snapshot, lease.version)
        if self._versions.state_of(route.key).state != "READY":
            raise VersionNotLoaded(
                f"The run {run!r} was given {_name(route.key)}, which is not loaded. Load it, or register the run with "
                "`move` to get what the bare name means now."
            )
        return replace(route, arm=lease.arm)

    def keep(self, selector: Selector, run: str, route: Route) -> None:
        """A call of this run is scored by this version: with the bare name, the run has a lease from now on."""
        if not run or not selector.is_bare:
            return
        given = self._given(selector, run)
        now = self._clock()
        if given is not None and given.is_active(now):
            self._leases.renew(run, selector.model, now)
        else:
            self._take(run, route, route.arm, 0.0 if given is None else given.lease_s)

    def scored(self, run: str, route: Route, scores: Sequence[float], tokens: int) -> None:
        """A call of this run was answered with these raw scores. The anonymous run is not kept."""
        if run:
            self._statistics.add(run, *route.key, route.arm, scores=scores, tokens=tokens, now=self._clock())

    def statuses(self, model: str | None = None) -> list[RunStatus]:
        """What is known of all runs on a model, or on all models (None); last seen first."""
        now = self._clock()
        known = {(lease.run, lease.model): RunStatistics(lease.run, *lease.key, lease.arm) for lease in self._leases}
        known |= {(seen.run, seen.model): seen for seen in self._statistics}
        statuses = []
        for seen in known.values():
            lease = self._leases.last(seen.run, seen.model)
            statuses.append(
                RunStatus(
                    run=seen.run,
                    model=seen.model,
                    version=seen.version,
                    arm=seen.arm,
                    items=seen.items,
                    tokens=seen.tokens,
                    score_mean=seen.score_mean,
                    score_std=seen.score_std,
                    last_seen=max(seen.last_seen, lease.last_seen if lease is not None else 0.0),
                    lease_expires_at=lease.expires_at if lease is not None and lease.is_active(now) else None,
                )
            )
        statuses = [status for status in statuses if model in (None, status.model)]
        return sorted(statuses, key=lambda status: (-status.last_seen, status.run, status.model))

    def _given(self, selector: Selector, run: str) -> Lease | None:
        """What the run was given last by the bare name, unless it has ended."""
        lease = self._leases.last(run, selector.model) if run and selector.is_bare else None
        return None if lease is None or lease.has_ended else lease

    def _take(self, run: str, route: Route, arm: str | None, lease_s: float) -> Lease:
        model, version = route.key
        return self._leases.take(
            run, model, version, route.digest, arm=arm, lease_s=lease_s or self._lease_s, now=self._clock()
        )

    def _need_of(self, key: VersionKey) -> str | None:
        runs = self._leases.holders(key, self._clock())
        if not runs:
            return None
        more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
        return (
            f"the runs {', '.join(runs[:5])}{more} have leases on it. End them, or wait until they have given no sign "
            "of life for as long as their leases are."
        )


def check_run(run: str) -> None:
    """Raises InvalidRequest where this cannot be the id of a run."""
    if not _RUN.fullmatch(run):
        raise InvalidRequest(
            f"{run[:200]!r} cannot name a run: 1 to 128 letters, digits, '.', '_', '-', ':' and '/' were expected."
        )


def _name(key: VersionKey) -> str:
    return f"{key[0]}@{key[1]}"
