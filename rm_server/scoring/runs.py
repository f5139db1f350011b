"""Training runs: the version that each one's bare selector means, given once and kept in the catalog."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from weakref import WeakValueDictionary

from rm_server.config import LONGEST_LEASE_S, RunSettings
from rm_server.engine.versions import VersionManager
from rm_server.errors import CatalogUnavailable, InvalidRequest, RunNotFound, VersionChanged, VersionNotLoaded
from rm_server.metrics import Metrics
from rm_server.registry.catalog import Catalog
from rm_server.registry.names import check_run
from rm_server.registry.records import VersionKey, version_name
from rm_server.registry.run_records import Lease
from rm_server.registry.runs import Look, assign_run, changed_runs, end_runs, find_run
from rm_server.scoring.leases import Leases
from rm_server.scoring.not_yet import not_yet
from rm_server.scoring.routing import Route, resolve
from rm_server.scoring.run_activity import RunActivity
from rm_server.scoring.run_status import RunStatus
from rm_server.scoring.selector import Selector, parse

SHORTEST_LEASE_S = 10.0


class Runs:
    """All runs, of all servers on this catalog. A run that scores by the bare name gets a lease by that, too.

    What a run is given is written to the catalog before it is used, in one transaction, so that all servers give the
    same; this server remembers it then, and for a run that it knows nothing waits for the catalog. While the catalog
    is away known runs go on, and others are refused. Lives on the event loop.
    """

    def __init__(
        self,
        versions: VersionManager,
        catalog: Catalog,
        settings: RunSettings,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` in seconds since the epoch."""
        self._versions = versions
        self._catalog = catalog
        self._metrics = metrics
        self._lease_s = settings.lease_s
        self._clock = clock
        self._leases = Leases(settings.max_known_runs)
        self._activity = RunActivity(catalog, self._leases, settings.max_known_runs, clock)
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        # Versions that runs are being given now: not to be unloaded meanwhile.
        self._giving: Counter[VersionKey] = Counter()
        self._run_revision: int | None = None
        versions.add_guard(self._need_of)
        versions.after_look(self._follow)

    async def start(self) -> None:
        """Writes what runs do to the catalog from now on."""
        await self._activity.start()

    async def stop(self) -> None:
        """Writes the rest."""
        await self._activity.stop()

    # --- what runs ask for ---

    async def register(
        self, run: str, model: str, *, lease_s: float = 0.0, expected_digest: str = "", move: bool = False
    ) -> tuple[Lease, bool]:
        """Gives the run a lease on a version; True: it is the version that the run had before.

        ``lease_s`` 0: the server's own. ``move``: not what it had, but what the bare name means without a lease.
        Raises InvalidRequest, what `resolve` raises, VersionNotLoaded, Draining where the version is still being
        loaded, CatalogUnavailable, and VersionChanged where the version has not the expected digest.
        """
        check_run(run)
        if lease_s and not SHORTEST_LEASE_S <= lease_s <= LONGEST_LEASE_S:
            raise InvalidRequest(
                f"lease_seconds is {lease_s:g}; {SHORTEST_LEASE_S:g} to {LONGEST_LEASE_S:g}, or 0, was expected."
            )
        selector = parse(model)
        if not selector.is_bare:
            raise InvalidRequest(f"A lease is on the bare name of a model, not on {model!r}.")

        def check(route: Route) -> None:
            if expected_digest and expected_digest != route.digest:
                raise VersionChanged(
                    f"The run {run!r} expected digest {expected_digest}, and would be given {version_name(route.key)} "
                    f"with {route.digest}. Score by the version's number, or register without an expected digest."
                )

        async with self._lock(run, model):
            seen = await self._look_up(run, model)
            while True:
                kept = None if move else seen
                lease = self._proposal(selector, run, seen, kept, lease_s or self._lease_s, check)
                lease, is_given = await self._give(lease, seen, kept)
                if is_given:
                    return lease, seen is not None and seen.key == lease.key
                seen = lease

    async def renew(self, run: str, model: str) -> Lease:
        """A sign of life. Raises RunNotFound."""
        if self._leases.active(run, model, self._clock()) is None:
            lease = await self._look_up(run, model)
            if lease is None or not lease.is_active(self._clock()):
                raise RunNotFound(
                    f"The run {run!r} has no lease on {model!r}, or it has ended. Register the run again."
                )
        return self._leases.renew(run, model, self._clock())

    async def end(self, run: str, model: str | None = None) -> None:
        """Ends the run's lease on a model, or all (None). Raises RunNotFound."""
        for lease in await asyncio.to_thread(end_runs, self._catalog, run, model, self._clock()):
            self._leases.put(lease, self._clock())

    # --- the path of a call ---

    def is_settled(self, selector: Selector, run: str) -> bool:
        """Whether `route` knows by itself what a call of this run means. Where not: `settle` first."""
        if not run or not selector.is_bare:
            return True
        lease = self._leases.active(run, selector.model, self._clock())
        return lease is not None

    async def settle(self, selector: Selector, run: str, check: Callable[[Route], object]) -> None:
        """Finds out what the run was given, or gives it a version: that is in the catalog when this returns.

        ``check`` is given what the run would get; what it raises is raised, and nothing is given then. Raises as
        `register` does. While the catalog is away, a run whose lease expired goes on with what it had.
        """
        check_run(run)
        async with self._lock(run, selector.model):
            if self.is_settled(selector, run):
                return
            seen = self._leases.last(run, selector.model) or await self._look_up(run, selector.model)
            while seen is None or not seen.is_active(self._clock()):
                kept = None if seen is None or seen.has_ended else seen
                proposal = self._proposal(selector, run, seen, kept, kept.lease_s if kept else self._lease_s, check)
                seen, _ = await self._give(proposal, seen, kept)

    async def look_again(self, selector: Selector, run: str) -> None:
        """Asks the catalog what the run has: it may have moved on another server a moment ago."""
        if run and selector.is_bare:
            await self._look_up(run, selector.model)

    def route(self, selector: Selector, run: str) -> Route:
        """Which version a call of this run means now; for a run that is not settled, what it would be given.

        By the bare name a run means the version that it was given, until it ends or asks to move: after a pause longer
        than its lease, too. Raises InvalidRequest, what `resolve` raises, VersionNotLoaded where the run's version is
        away, and Draining where it is still being loaded.
        """
        if run:
            check_run(run)
        lease = self._leases.last(run, selector.model) if run and selector.is_bare else None
        had_arm = (lease.arm if lease is not None else None) or ""
        if lease is not None and lease.has_ended:
            lease = None
        version = None if lease is None else lease.version
        route = resolve(selector, self._versions.snapshot, version, run=run, now_s=self._clock(), had_arm=had_arm)
        if lease is None:
            return route
        self._check_ready(route, run)
        return replace(route, arm=lease.arm)

    def keep(self, selector: Selector, run: str) -> None:
        """A call of this run, which is settled, is being scored: a sign of life."""
        if run and selector.is_bare:
            self._leases.renew(run, selector.model, self._clock())

    def scored(self, run: str, route: Route, scores: Sequence[float], tokens: int) -> None:
        """A call of this run was answered with these raw scores. The anonymous run is not kept."""
        if run:
            self._activity.statistics.add(run, *route.key, scores=scores, tokens=tokens, now=self._clock())

    async def statuses(self, model: str | None = None, run: str | None = None) -> list[RunStatus]:
        """What is known of the runs on a model, or on all models (None), of one run or all; last seen first."""
        return await self._activity.statuses(model, run)

    # --- giving ---

    def _proposal(
        self,
        selector: Selector,
        run: str,
        seen: Lease | None,
        kept: Lease | None,
        lease_s: float,
        check: Callable[[Route], object],
    ) -> Lease:
        """What the run would get: what it had (``kept``), or what the bare name means without a lease."""
        now = self._clock()
        had_arm = (seen.arm if seen is not None else None) or ""
        version = None if kept is None else kept.version
        route = resolve(selector, self._versions.snapshot, version, run=run, now_s=now, had_arm=had_arm)
        if kept is not None and kept.digest != route.digest:
            raise VersionChanged(
                f"The run {run!r} was given {version_name(route.key)} with digest {kept.digest}; it has {route.digest} "
                f"now. {_way_on(selector.model)}"
            )
        check(route)
        self._check_ready(route, run)
        arm = route.arm if kept is None else kept.arm
        return Lease(run, *route.key, route.digest, arm, lease_s, now, now + lease_s)

    async def _give(self, lease: Lease, seen: Lease | None, kept: Lease | None) -> tuple[Lease, bool]:
        """Writes it, if the run has what was ``seen``; else False, and what it has.

        A run that keeps what it has goes on while the catalog is away.
        """
        try:
            with self._held_back(lease.key):
                lease, is_given = await asyncio.to_thread(assign_run, self._catalog, lease, seen)
        except CatalogUnavailable:
            if kept is None or kept.has_ended:
                raise
            return self._leases.renew(lease.run, lease.model, self._clock()), True
        self._leases.put(lease, self._clock())
        if is_given:
            self._metrics.lease_given(lease.key, None if seen is None else seen.key)
        return lease, is_given

    async def _look_up(self, run: str, model: str) -> Lease | None:
        """What the catalog says of a run; while it is away, what is known here. Raises CatalogUnavailable."""
        try:
            lease = await asyncio.to_thread(find_run, self._catalog, run, model)
        except CatalogUnavailable:
            if (known := self._leases.last(run, model)) is None:
                raise
            return known
        if lease is not None:
            self._leases.put(lease, self._clock())
        return self._leases.last(run, model)

    async def _follow(self, look: Look) -> None:
        """Other servers gave or took versions: what is known here of those runs is brought up to date."""
        since = self._run_revision
        if since is not None and since != look.run_revision:
            for lease in await asyncio.to_thread(changed_runs, self._catalog, since):
                known = self._leases.last(lease.run, lease.model)
                if known is not None and known.revision < lease.revision:
                    self._leases.put(lease, self._clock())
        self._run_revision = look.run_revision  # not before: what could not be read is asked for again

    def _check_ready(self, route: Route, run: str) -> None:
        key = route.key
        status = self._versions.state_of(key)
        if status.state == "READY" or self._versions.pager.is_away(key):  # a call brings it back, and waits for that
            return
        whose = f", which the run {run!r} has,"
        if (error := not_yet(key, status, key in self._versions.wanted, whose)) is not None:
            raise error
        why = f" Its last load failed: {status.error.message}" if status.error is not None else ""
        raise VersionNotLoaded(
            f"The run {run!r} was given {version_name(key)}, which is not loaded. Load it. {_way_on(key[0])}{why}"
        )

    @contextmanager
    def _held_back(self, key: VersionKey) -> Iterator[None]:
        """Nobody unloads the version meanwhile."""
        self._giving[key] += 1
        try:
            yield
        finally:
            self._giving[key] -= 1
            if not self._giving[key]:
                del self._giving[key]

    def _lock(self, run: str, model: str) -> asyncio.Lock:
        return self._locks.setdefault((run, model), asyncio.Lock())

    def _need_of(self, key: VersionKey) -> str | None:
        if key in self._giving:
            return "a run is just being given it."
        runs = self._leases.holders(key, self._clock())
        if not runs:
            return None
        more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
        return (
            f"leases on it: {', '.join(runs[:5])}{more}. End the runs (`rm-server end-run`), or wait until they have "
            "given no sign of life for as long as their leases are."
        )


def _way_on(model: str) -> str:
    return (
        "To go on with what the bare name means now, register the run with `move`, or ask for a label, "
        f"`{model}@stable` say, instead of the bare name."
    )
