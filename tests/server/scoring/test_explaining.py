"""Explaining beside what operators do meanwhile; what is said of texts and parts is tested through the service."""

from __future__ import annotations

import asyncio
from pathlib import Path

import fake_versions as fake
from fake_versions import until
from fake_world import BY, running_world

from rm_server.config import LimitSettings, RunSettings
from rm_server.metrics import Metrics
from rm_server.scoring.composites import Composites
from rm_server.scoring.explaining import Explainer
from rm_server.scoring.runs import Runs
from rm_server.scoring.scorer import ScoreCall, Scorer


async def test_a_version_that_another_server_deletes_meanwhile_is_explained_to_the_end(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        key, versions, metrics = await world.register(0.5), world.versions, Metrics()
        await versions.load(key, None, **BY)
        folder, digest = world.files(key), versions.snapshot.versions[key].digest
        runs = Runs(versions, world.catalog, RunSettings(), metrics)
        composites = Composites(world.engine, world.artifacts, lambda: versions.snapshot)
        scorer = Scorer(world.engine, versions, runs, LimitSettings(), metrics, composites)
        explainer = Explainer(world.engine, versions, runs, scorer)
        loaded = len(fake.noted(folder))
        explaining = asyncio.create_task(explainer.explain(ScoreCall("m@1", [((), [(fake.WAIT,)])]), None))
        await until(lambda: len(fake.noted(folder)) == loaded + 1)
        await asyncio.to_thread(world.elsewhere.set_wanted, *key, False, "me")
        await asyncio.to_thread(world.elsewhere.delete_version, *key, "me")
        await until(lambda: key not in versions.snapshot.versions)
        fake.open_gate(folder)
        explained = await explaining
        assert (explained.model, explained.version, explained.digest) == (*key, digest)
        assert explained.answer.value == fake.WAIT / 2
