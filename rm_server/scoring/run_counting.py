"""Counts the runs in the catalog for the metrics, again and again."""

from __future__ import annotations

import asyncio
import logging
import time

from rm_server.errors import RmError
from rm_server.metrics import Metrics
from rm_server.registry.catalog import Catalog
from rm_server.registry.run_census import count_runs

COUNT_EVERY_S = 10.0

_log = logging.getLogger(__name__)


async def keep_counting(catalog: Catalog, metrics: Metrics) -> None:
    """Until cancelled. While the catalog is away the last counts stay: rm_catalog_reachable says that they are old."""
    while True:
        try:
            census = await asyncio.to_thread(count_runs, catalog, time.time())
        except RmError as error:
            _log.debug("Runs are not counted for now: %s", error)
        except Exception:
            # Whatever it is: who gives up here never counts again.
            _log.exception("Runs could not be counted; the next try comes in %g s.", COUNT_EVERY_S)
        else:
            metrics.runs_counted(
                leases=census.leases,
                leases_over=census.leases_over,
                active=census.active,
                largest_share=census.largest_share,
            )
        await asyncio.sleep(COUNT_EVERY_S)
