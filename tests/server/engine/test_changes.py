"""Watchers see what changed, and a slow one does not pile it up."""

from __future__ import annotations

import asyncio
import gc

from rm_server.engine.changes import Changes, ModelChange


async def test_a_watcher_sees_each_change_since_it_began() -> None:
    changes = Changes()
    changes.publish("STATE", "before")
    watcher = changes.subscribe()
    changes.publish("STATE", "m")
    changes.publish("LABELS", "m")
    assert [await anext(watcher), await anext(watcher)] == [ModelChange("STATE", "m"), ModelChange("LABELS", "m")]


async def test_a_slow_watcher_sees_a_repeated_change_once() -> None:
    changes = Changes()
    watcher = changes.subscribe()
    for _ in range(1000):
        changes.publish("STATE", "m")
    await anext(watcher)
    late = asyncio.ensure_future(anext(watcher))
    await asyncio.sleep(0)
    assert not late.done()
    changes.publish("STATE", "m")
    assert await late == ModelChange("STATE", "m")


async def test_a_watcher_that_is_gone_costs_nothing() -> None:
    changes = Changes()
    watcher = changes.subscribe()
    del watcher
    gc.collect()
    assert len(changes._subscriptions) == 0
