"""Versions on one device under unequal load: one that has little to do does not wait for one that has much."""

from __future__ import annotations

import asyncio
from pathlib import Path

import fake_versions as fake
from fake_versions import items, outcomes, running_engine

HEAVY, LIGHT = ("heavy", 1), ("light", 1)


async def test_a_light_version_goes_between_the_batches_of_a_heavy_one(tmp_path: Path) -> None:
    done: list[str] = []
    async with running_engine(max_batch_tokens=100, cache_items=0) as engine:
        for key in (HEAVY, LIGHT):
            await engine.load(key, tmp_path / key[0], fake.make_version(tmp_path / key[0]), "fp32")
        blocked = engine.submit(HEAVY, items([fake.WAIT]))
        await asyncio.sleep(0)
        heavy = engine.submit(HEAVY, items(*([number] * 100 for number in range(1, 21))), use_cache=False)
        light = engine.submit(LIGHT, items([1] * 100, [2] * 100), use_cache=False)
        for name, futures in (("heavy", heavy), ("light", light)):
            for future in futures:
                future.add_done_callback(lambda _, name=name: done.append(name))
        fake.open_gate(tmp_path / "heavy")
        await outcomes([*blocked, *heavy, *light])
    # One batch of the heavy one may be in the pipe already; then they take turns.
    assert done.index("light") <= 2
    assert [index for index, name in enumerate(done) if name == "light"][1] <= 5
    assert len(done) == 22
