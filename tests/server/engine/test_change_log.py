"""Whoever reads the log of a server knows which version its labels, splits and shadows gave its callers, and when."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_world import BY, running_world

from rm_server.engine.change_log import change_lines
from rm_server.registry.records import Arm, RampPoint, Shadow, Snapshot, Split

NOW = datetime(2027, 1, 31, tzinfo=UTC)
NOTHING = Snapshot(1, {}, {}, frozenset())


def lines(before: Snapshot, after: Snapshot) -> list[str]:
    return list(change_lines(before, after))


def test_labels() -> None:
    one = Snapshot(2, {}, {("m", "stable"): 1, ("m", "canary"): 2}, frozenset())
    two = Snapshot(3, {}, {("m", "stable"): 2, ("m", "canary"): 2}, frozenset())
    assert lines(one, one) == []
    assert lines(one, two) == ["the label stable of m names version 2 now; it named version 1"]
    assert lines(NOTHING, one) == [
        "the label canary of m names version 2 now; it named nothing",
        "the label stable of m names version 1 now; it named nothing",
    ]
    assert lines(two, NOTHING)[1] == "the label stable of m names nothing now; it named version 2"


def test_splits_and_shadows() -> None:
    arms = (Arm("a", 1, 0.75), Arm("b", 2, 0.25, (RampPoint(0.0, 1.0),)))
    after = Snapshot(
        2,
        {},
        {},
        frozenset(),
        splits={"m": Split("m", arms, "salt", NOW)},
        shadows={("m", 3): Shadow("m", 3, 0.1, NOW)},
    )
    assert lines(after, after) == []
    assert lines(NOTHING, after) == [
        "the runs of m are split now: a=1 (weight 0.75), b=2 (weight 0.25, ramped)",
        "m@3 shadows 10 % of its model's calls",
    ]
    assert lines(after, NOTHING) == ["the runs of m are split no more", "m@3 shadows no more"]


async def test_what_another_process_changed_is_in_the_log_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rm_server.engine")
    async with running_world(tmp_path) as world:
        one, two = await world.register(0.5), await world.register(2.0)
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        await world.versions.load(two, None, **BY)
        digest = world.versions.snapshot.versions[one].digest
        assert f"m@1 is loaded: digest {digest}, fp32" in caplog.messages
        caplog.clear()
        watcher = world.versions.subscribe()
        world.elsewhere.set_label("m", "stable", 2, "somebody else")
        async with asyncio.timeout(30):
            assert (await anext(watcher)).kind == "LABELS"
        await world.versions.refresh()
        assert caplog.messages == ["the label stable of m names version 2 now; it named version 1"]
    async with running_world(tmp_path):
        assert not [text for text in caplog.messages[1:] if "label" in text], "at its start nothing has changed"
