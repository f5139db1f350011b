"""A registry, an engine over fake versions, and the manager between them: a server without its edges."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fake_versions as fake
from fake_versions import items, outcomes, running_engine

from rm_server.engine.engine import Engine
from rm_server.engine.versions import VersionManager
from rm_server.metrics import Metrics
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import Home, open_home
from rm_server.registry.manifest import GoldenExample, Manifest
from rm_server.registry.records import VersionKey

BY = {"actor": "me"}


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A server's registry and engine, with a manager over them."""

    def __init__(self, home: Path, engine: Engine, clock: Callable[[], float], catalog_url: str) -> None:
        self.folder = home
        self.catalog, self.artifacts = open_home(Home(home / "home", catalog_url))
        self._url = Home(home / "home", catalog_url).catalog_url
        self._others: list[Catalog] = []
        self.engine = engine
        self.metrics = Metrics()
        self.versions = VersionManager(self.catalog, self.artifacts, engine, self.metrics, poll_s=0.005, clock=clock)

    async def register(self, factor: float = 0.5, **options: Any) -> VersionKey:
        """Registers the next version of m; its scores are the sum of the ids times ``factor``."""
        return await self.register_with(fake_manifest(factor), factor=factor, **options)

    async def register_with(self, manifest: Manifest, **options: Any) -> VersionKey:
        source = self.folder / "source"
        fake.make_version(source, manifest, **options)
        (source / "reward_model.json").write_text(manifest.to_json())
        record, created = await self.versions.register("m", source, **BY)
        assert created
        return record.key

    def files(self, key: VersionKey) -> Path:
        return self.artifacts.path(self.versions.snapshot.versions[key].digest)

    def state(self, key: VersionKey) -> str:
        return self.versions.state_of(key).state

    @property
    def elsewhere(self) -> Catalog:
        """The catalog as another process sees it."""
        self._others.append(Catalog(self._url))
        return self._others[-1]

    async def stop(self) -> None:
        await self.versions.stop()
        for catalog in (self.catalog, *self._others):
            catalog.close()

    async def score(self, key: VersionKey, *ids: int) -> float:
        with self.engine.use(key):
            (score,) = await outcomes(self.engine.submit(key, items(ids), use_cache=False))
        assert isinstance(score, float)
        return score


def fake_manifest(factor: float) -> Manifest:
    return Manifest("rules", golden=(GoldenExample((1, 2), (3,), 6 * factor),))


@asynccontextmanager
async def running_world(
    folder: Path, *, clock: Callable[[], float] = time.time, catalog_url: str = "", **settings: Any
) -> AsyncIterator[World]:
    """All of it, started; ``settings`` are those of the engine. Two on one folder are two servers on one home."""
    async with running_engine(**settings) as engine:
        world = World(folder, engine, clock, catalog_url)
        try:
            await world.versions.start()
            yield world
        finally:
            await world.stop()
