"""A label goes back to a version that is loaded by then, or it stays where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_world import BY, running_world

from rm_server.errors import DigestMismatch, VersionChanged, VersionNotFound


async def test_a_label_goes_back_to_a_version_that_is_loaded_first(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        one, two = await world.register(0.5), await world.register(2.0)
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        await world.versions.set_label("m", "stable", 2, load=True, unload_previous=True, **BY)
        assert [world.state(key) for key in (one, two)] == ["REGISTERED", "READY"]
        assert await world.versions.rollback("m", "stable", "bob", "too kind") == (2, 1)
        assert world.versions.snapshot.labels == {("m", "stable"): 1}
        assert await world.score(one, 10) == 5.0
        told = [(record.actor, record.action, record.comment) for record in world.catalog.history("m", 2)]
        assert told == [("bob", "rollback", "too kind"), ("bob", "load", "too kind")]
        with pytest.raises(VersionNotFound, match="no earlier version"):
            await world.versions.rollback("m", "stable", **BY)


async def test_a_label_stays_where_the_version_before_cannot_be_loaded(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        one, two = await world.register(0.5), await world.register(2.0)
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        await world.versions.set_label("m", "stable", 2, load=True, unload_previous=True, **BY)
        rules = world.files(one) / "rules.json"
        rules.chmod(0o644)
        rules.write_text('{"factor": 3.0}')
        with pytest.raises(DigestMismatch):
            await world.versions.rollback("m", "stable", **BY)
        assert world.versions.snapshot.labels == {("m", "stable"): 2}
        assert await world.score(two, 10) == 20.0


async def test_a_label_that_was_moved_meanwhile_is_not_moved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world(tmp_path) as world:
        for factor in (0.5, 1.0, 2.0):
            version = (await world.register(factor))[1]
            await world.versions.set_label("m", "stable", version, load=True, **BY)
        asked = world.catalog.rollback_versions

        def then_somebody_rolls_back(model: str, label: str) -> tuple[int, int]:
            answer = asked(model, label)
            world.catalog.rollback(model, label, "ann")
            return answer

        monkeypatch.setattr(world.catalog, "rollback_versions", then_somebody_rolls_back)
        with pytest.raises(VersionChanged, match="it would go back to 1"):
            await world.versions.rollback("m", "stable", **BY)
        assert world.catalog.snapshot().labels == {("m", "stable"): 2}
