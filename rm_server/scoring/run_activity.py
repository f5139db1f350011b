"""Signs of life and statistics of runs on their way to the catalog: gathered, and written every few seconds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from rm_server.errors import RmError
from rm_server.registry.catalog import Catalog
from rm_server.registry.runs import forget_runs, list_runs, write_activity
from rm_server.scoring.leases import Leases
from rm_server.scoring.run_statistics import PendingStatistics
from rm_server.scoring.run_status import RunStatus, run_statuses

WRITE_EVERY_S = 2.0
FORGET_EVERY = 30
"""Old runs are looked for at each so many-th writing."""

_log = logging.getLogger(__name__)


class RunActivity:
    """What runs did since the last writing. Lives on the event loop."""

    def __init__(self, catalog: Catalog, leases: Leases, max_known_runs: int, clock: Callable[[], float]) -> None:
        self.statistics = PendingStatistics(max_known_runs)
        self._catalog = catalog
        self._leases = leases
        self._max_known_runs = max_known_runs
        self._clock = clock
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Writes again and again from now on."""
        self._task = asyncio.get_running_loop().create_task(self._write_again_and_again())

    async def stop(self) -> None:
        """Writes the rest; what cannot be written is lost, and only that."""
        if self._task is not None:
            async with self._writing:  # not in the middle of a transaction
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self.write(everything=True)
        except RmError as error:
            _log.warning("What runs did last is not in the catalog: %s", error)

    async def write(self, *, everything: bool = False) -> None:
        """Writes what is due (``everything``: all), in one transaction. Raises CatalogUnavailable; it is kept then."""
        async with self._writing:
            now = self._clock()
            leases = self._leases.unwritten() if everything else self._leases.due(now, WRITE_EVERY_S)
            statistics = self.statistics.take()
            if not leases and not statistics:
                return
            try:
                await asyncio.to_thread(write_activity, self._catalog, leases, statistics)
            except Exception:
                self.statistics.put_back(statistics)
                raise
            self._leases.note_written(leases)

    async def forget(self) -> None:
        """Lets go of the runs that were seen longest ago, beyond ``max_known_runs``."""
        await asyncio.to_thread(forget_runs, self._catalog, self._max_known_runs, self._clock())

    async def statuses(self, model: str | None, run: str | None) -> list[RunStatus]:
        """What the catalog knows of runs, and what is still on its way there. Raises CatalogUnavailable."""
        async with self._writing:
            leases, statistics = await asyncio.to_thread(list_runs, self._catalog, model, run)
            # Copies: they are counted on here meanwhile.
            pending = [
                replace(part) for part in self.statistics if model in (None, part.model) and run in (None, part.run)
            ]
        known = {(lease.run, lease.model): lease for lease in self._leases}
        leases = [
            here
            if (here := known.get((lease.run, lease.model))) is not None
            and here.revision == lease.revision
            and here.last_seen > lease.last_seen
            else lease
            for lease in leases
        ]
        # Of ten thousand runs it takes half a second, for which no call should wait.
        return await asyncio.to_thread(run_statuses, leases, [*statistics, *pending], self._clock())

    async def _write_again_and_again(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            rounds += 1
            try:
                await self.write()
                if rounds % FORGET_EVERY == 0:
                    await self.forget()
            except RmError as error:
                _log.debug("What runs do is kept for now: %s", error)
            except Exception:
                # Whatever it is: who gives up here never writes again.
                _log.exception("What runs do could not be written; the next try comes in %g s.", WRITE_EVERY_S)
