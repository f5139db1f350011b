"""The server put together: the parts in the order in which they start, and the end in the opposite order."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rm_server.api.access import Access
from rm_server.api.calls import Calls
from rm_server.api.certificates import Certificates
from rm_server.api.credentials import watched_credentials
from rm_server.api.experiment_service import ExperimentService
from rm_server.api.explain_service import ExplainService
from rm_server.api.health import HealthService, Readiness
from rm_server.api.http import HttpService
from rm_server.api.model_service import ModelService
from rm_server.api.oip_service import OipService
from rm_server.api.outcome_service import OutcomeService
from rm_server.api.promotion_service import PromotionService
from rm_server.api.reloading import WatchedFiles, watch
from rm_server.api.rpc import Edge
from rm_server.api.scoring_service import ScoringService
from rm_server.api.server import SERVICE_NAMES, GrpcServer, HttpServer
from rm_server.api.shadow_service import ShadowService
from rm_server.config import ConfigError, ServeSettings, TracingSettings, parse_address
from rm_server.engine.engine import Engine
from rm_server.engine.versions import VersionManager
from rm_server.metrics import Metrics
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import Home, make_home, open_home
from rm_server.scoring.composites import Composites
from rm_server.scoring.explaining import Explainer
from rm_server.scoring.routing import Route
from rm_server.scoring.run_counting import keep_counting
from rm_server.scoring.runs import Runs
from rm_server.scoring.score_files import check_pyarrow
from rm_server.scoring.score_log import ScoreLog
from rm_server.scoring.score_watch import ScoreWatch
from rm_server.scoring.scorer import OnScored, ScoreCall, Scorer
from rm_server.scoring.shadow_pairs import PairBuffer
from rm_server.scoring.shadowing import make_shadowing

if TYPE_CHECKING:
    from rm_server.api.tracing import Tracing

logger = logging.getLogger(__name__)

SERVER_FILE = "server.json"
"""In the home while a server runs on it: its process id and where it listens."""

LAG_INTERVAL_S = 0.5
DISK_INTERVAL_S = 15.0
LAST_ANSWERS_S = 5.0
"""Answers that are ready have so long to reach their callers."""


class App:
    """One server. Also runs inside a test: port 0, `start`, `stop`."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.grpc_address = ""
        self.http_address = ""
        self._stack = AsyncExitStack()
        self._watched: list[WatchedFiles] = []

    async def start(self) -> None:
        """Returns when calls are answered: whatever is wanted has been loaded by then, or has failed to load.

        While versions load probes are answered, and others told to come back. Raises ConfigError and RmError; nothing
        is left running then.
        """
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def stop(self) -> None:
        """Refuses new work, lets what is under way finish for up to ``drain_s``, and ends."""
        await self._stack.aclose()

    def reload(self) -> None:
        """Reads tokens and certificates again; what cannot be used is refused, and the old ones stay in use."""
        for files in self._watched:
            files.reload()

    async def _start(self, stack: AsyncExitStack) -> None:
        settings, metrics = self.settings, self.metrics
        access = Access(metrics, settings.token)
        certificates = Certificates(settings.tls)
        self._watched = watched_credentials(settings, access, certificates, metrics)
        catalog, artifacts = await self._open_home(stack)

        engine = Engine(settings.engine, metrics)
        versions = VersionManager(
            catalog, artifacts, engine, metrics, poll_s=settings.catalog.poll_s, policy=settings.catalog.policy
        )
        runs = Runs(versions, catalog, settings.runs, metrics)
        composites = Composites(engine, artifacts, lambda: versions.snapshot)
        versions.set_composite_trial(composites.trial)
        scorer = Scorer(engine, versions, runs, settings.limits, metrics, composites)
        pairs = PairBuffer(catalog, settings.shadow, metrics, lambda key: key in versions.snapshot.shadows)
        shadowing = make_shadowing(
            engine, composites, versions, artifacts, pairs, metrics, log_texts=settings.shadow.log_texts
        )
        scorer.on_scored = _after_answers(ScoreWatch(lambda: versions.snapshot, shadowing, metrics).scored)
        score_log = None
        if settings.score_log.path is not None:
            check_pyarrow()
            score_log = ScoreLog(settings.home / settings.score_log.path, settings.score_log, metrics)
            scorer.log = score_log.scored
        tracing = _tracing(settings.tracing)
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        calls = Calls(metrics, settings.log.access_share, tracing)
        readiness = Readiness(versions, calls, lambda: engine.is_down)
        engine.on_workers = readiness.changed
        # Bound before anything is loaded, so that a port that is taken is found at once.
        grpc_server = GrpcServer(
            Edge(calls, access),
            scoring=ScoringService(scorer, calls, settings.transport.max_stream_requests),
            explaining=ExplainService(Explainer(engine, versions, runs, scorer)),
            models=ModelService(versions, catalog, engine, calls),
            experiments=ExperimentService(runs, versions, catalog),
            shadows=ShadowService(versions, catalog, pairs.flush),
            outcomes=OutcomeService(runs, catalog),
            promotions=PromotionService(versions, catalog, pairs.flush),
            oip=OipService(scorer, versions, readiness, calls, settings.transport.max_stream_requests),
            health=HealthService(versions, readiness, SERVICE_NAMES),
            address=settings.listen,
            transport=settings.transport,
            certificates=certificates,
        )
        stack.push_async_callback(grpc_server.stop, 0)
        self.grpc_address = _address(settings.listen, grpc_server.port)
        if settings.http:
            http_service = HttpService(
                scorer,
                calls,
                access,
                readiness,
                metrics,
                default_model=settings.default_model,
                max_body_bytes=settings.transport.max_message_bytes,
                metrics_need_token=settings.auth.metrics_need_token,
            )
            http_server = HttpServer(http_service.application(), settings.http, certificates)
            await http_server.start()
            stack.push_async_callback(http_server.stop)
            self.http_address = _address(settings.http, http_server.port)

        # A bound port that nobody answers holds callers up, for 20 s, who could go to another server.
        await grpc_server.start()
        await engine.start()
        stack.push_async_callback(engine.stop, 0.0)
        await versions.start()
        stack.push_async_callback(versions.stop)
        await runs.start()
        stack.push_async_callback(runs.stop)
        stack.push_async_callback(pairs.stop)
        stack.push_async_callback(shadowing.stop)
        if score_log is not None:
            stack.push_async_callback(score_log.stop)
            stack.push_async_callback(cancel, asyncio.create_task(score_log.run()))
        for watcher in (
            readiness.follow,
            pairs.run,
            lambda: _measure_lag(metrics),
            lambda: _measure_disk(settings.home, metrics),
            lambda: keep_counting(catalog, metrics),
            lambda: watch(self._watched),
        ):
            stack.push_async_callback(cancel, asyncio.create_task(watcher()))
        calls.open()
        readiness.changed()
        stack.push_async_callback(self._drain, calls, readiness, grpc_server)
        server_file = settings.home / SERVER_FILE
        await asyncio.to_thread(_announce, server_file, self.grpc_address, self.http_address)
        stack.callback(server_file.unlink, missing_ok=True)

    async def _open_home(self, stack: AsyncExitStack) -> tuple[Catalog, ArtifactStore]:
        home = Home(self.settings.home, self.settings.catalog_url, self.settings.artifacts)
        is_new = await asyncio.to_thread(make_home, home)
        catalog, artifacts = await asyncio.to_thread(open_home, home)
        stack.callback(catalog.close)
        self.metrics.catalog_reachable(True)
        if is_new:  # a warning: whoever meant the home with the models in it should see it
            logger.warning("created a new, empty home", extra={"home": str(home.path.absolute())})
        return catalog, artifacts

    async def _drain(self, calls: Calls, readiness: Readiness, grpc_server: GrpcServer) -> None:
        calls.drain()
        readiness.changed()
        logger.info("draining", extra={"drain_s": self.settings.drain_s})
        is_finished = await calls.finished(self.settings.drain_s)
        if not is_finished:
            logger.warning("calls are cut off", extra={"drain_s": self.settings.drain_s})
        calls.end_streams()
        await grpc_server.stop(LAST_ANSWERS_S if is_finished else 0)


def _tracing(settings: TracingSettings) -> Tracing | None:
    if not settings.endpoint:
        return None
    try:
        from rm_server.api.tracing import Tracing
    except ImportError as error:
        raise ConfigError(
            f"tracing.endpoint is set, and OpenTelemetry is not there ({error}): pip install 'rm-service[otel]'."
        ) from error
    return Tracing(settings)


def _after_answers(scored: OnScored) -> OnScored:
    """Once an answer is on its way: callers wait for nothing that is only looked at."""
    loop = asyncio.get_running_loop()

    def soon(call: ScoreCall, route: Route, scores: Sequence[float | None]) -> None:
        loop.call_soon(scored, call, route, scores)

    return soon


def _address(setting: str, port: int) -> str:
    """The address with the port that the system chose."""
    host, _ = parse_address("", setting)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _announce(path: Path, grpc_address: str, http_address: str) -> None:
    """Writes the file in one step: whoever finds it can read it."""
    content = {
        "pid": os.getpid(),
        "grpc": grpc_address,
        "http": http_address,
        "start_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8") as file:
        json.dump(content, file)
    Path(file.name).replace(path)


async def _measure_lag(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        expected = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        metrics.loop_lagged(max(0.0, loop.time() - expected))


async def _measure_disk(home: Path, metrics: Metrics) -> None:
    while True:
        try:
            # Where the disk is a network's, this may take long.
            metrics.home_free((await asyncio.to_thread(shutil.disk_usage, home)).free)
        except OSError:
            logger.warning("the disk of the home does not say how much room it has", exc_info=True)
        await asyncio.sleep(DISK_INTERVAL_S)


async def cancel(task: asyncio.Future[None]) -> None:
    """Ends a task that runs for ever; what it failed of, if it did, is in the log."""
    task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    if isinstance(outcome, Exception):
        logger.error("a task of the server had failed", exc_info=outcome)
