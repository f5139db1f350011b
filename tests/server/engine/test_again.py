"""What is computed again goes to workers that hold its versions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from fake_versions import items

from rm_server.engine.again import Again
from rm_server.engine.crew import SentBatch
from rm_server.engine.waiting import Call
from rm_server.engine.work import Work
from rm_server.registry.records import VersionKey

A, B, C = ("a", 1), ("b", 1), ("c", 1)


async def batch(*keys: VersionKey) -> SentBatch:
    """One with an item of each of these versions."""
    works = []
    for number, key in enumerate(keys):
        work = Work(items([number])[0], 0.0, None)
        work.call = Call(key, "run", 0.0, number, deadline=None)
        work.futures.append(asyncio.get_running_loop().create_future())
        works.append(work)
    return SentBatch(keys[0], works, is_mixed=len(keys) > 1)


def taken(again: Again, *keys: VersionKey) -> Sequence[VersionKey] | None:
    """The versions of what a worker with these is given."""
    sent = again.next(set(keys), 0.0, lambda work: pytest.fail("no deadline has passed"))
    return None if sent is None else [work.call.key for work in sent.works if work.call is not None]


async def test_a_mixed_batch_is_computed_in_parts_where_no_worker_holds_all_of_its_versions() -> None:
    again = Again()
    again.after_death([await batch(A, B, C), await batch(B)], "it was killed")
    assert taken(again, A, C) == [A, C]
    assert taken(again, A, C) is None
    assert taken(again, B) == [B]
    assert taken(again, B) == [B]
    assert not again


async def test_a_worker_that_holds_all_versions_computes_all() -> None:
    again = Again()
    again.after_death([await batch(A, B)], "it was killed")
    assert taken(again, C) is None
    assert taken(again, A, B, C) == [A, B]
    assert not again


async def test_what_nobody_waits_for_is_dropped() -> None:
    again = Again()
    sent = await batch(A, B)
    again.after_death([sent], "it was killed")
    for work in sent.works:
        work.cancel()
    assert taken(again, C) is None
    assert not again
