"""What a client can do, as coroutines on its own event loop: the one implementation behind both clients."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

import grpc
from rm_api.v1 import experiments_pb2, models_pb2, scoring_pb2

from ppo_client.client.caller import Attempts, Caller
from ppo_client.client.catalog import (
    Lease,
    Model,
    ModelChange,
    RunStatus,
    Trained,
    Version,
    read_change,
    read_lease,
    read_model,
    read_run_status,
    read_version,
)
from ppo_client.client.channels import error_of
from ppo_client.client.content import Item
from ppo_client.client.errors import (
    DeadlineExceeded,
    RewardClientError,
    RunNotFound,
    ServerUnreachable,
    VersionChanged,
    VersionChangedDuringCall,
)
from ppo_client.client.explanation import Explanation, read_explanation
from ppo_client.client.known_versions import KnownVersions
from ppo_client.client.score_call import ScoreCall
from ppo_client.client.scores import Scores
from ppo_client.client.scoring import Scorer
from ppo_client.client.settings import ClientSettings
from ppo_client.client.stream_thread import answers_of


class Operations:
    """Scoring takes its own timeout, all else the settings'. All may be repeated safely, and is where that helps."""

    def __init__(self, settings: ClientSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._caller = Caller(settings, clock=clock)
        self._scorer = Scorer(self._caller, settings)
        self._timeout_s = settings.timeout_s
        self._known_versions = KnownVersions(settings.on_version_change)

    async def score(self, items: Sequence[Item], call: ScoreCall, timeout_s: float) -> Scores:
        known = self._known_versions
        asked = replace(
            call,
            calibrated=call.calibrated or known.are_recalibrated,
            expected_digest=call.expected_digest or known.expected_digest(call.model, call.run),
        )
        try:
            with _says_the_limit(timeout_s):
                scores = await self._scorer.score(items, asked, timeout_s)
        except VersionChangedDuringCall:
            raise
        except VersionChanged as refusal:
            if not call.expected_digest:
                known.refused(call.model, call.run, refusal)
            raise
        known.answered(call.model, call.run, scores)
        return scores

    async def explain(self, request: scoring_pb2.ExplainRequest) -> Explanation:
        return read_explanation(await self._call(lambda stubs: stubs.scoring.Explain, request))

    async def register_run(self, request: experiments_pb2.RegisterRunRequest) -> Lease:
        response = await self._call(lambda stubs: stubs.experiments.RegisterRun, request)
        lease = read_lease(response.lease, is_resumed=response.resumed)
        self._known_versions.given(lease.model, lease.run, lease.version, lease.digest)
        return lease

    async def list_runs(self, model: str, run: str) -> list[RunStatus]:
        request = experiments_pb2.ListRunsRequest(model=model, run=run)
        response = await self._call(lambda stubs: stubs.experiments.ListRuns, request)
        return [read_run_status(each) for each in response.runs]

    async def run_status(self, model: str, run: str) -> RunStatus:
        for status in await self.list_runs(model, run):
            return status
        raise RunNotFound(f"the service knows no run {run!r} of {model!r}; it has neither registered nor scored yet")

    async def renew_lease(self, model: str, run: str) -> Lease:
        request = experiments_pb2.RenewLeaseRequest(model=model, run=run)
        response = await self._call(lambda stubs: stubs.experiments.RenewLease, request)
        return read_lease(response.lease, is_resumed=True)

    async def end_run(self, model: str, run: str) -> None:
        await self._call(lambda stubs: stubs.experiments.EndRun, experiments_pb2.EndRunRequest(model=model, run=run))
        self._known_versions.ended(model, run)

    async def report_outcome(self, request: experiments_pb2.ReportOutcomeRequest) -> Trained:
        response = await self._call(lambda stubs: stubs.experiments.ReportOutcome, request)
        return Trained(response.version, response.arm)

    async def list_models(self, model: str) -> list[Model]:
        response = await self._call(lambda stubs: stubs.models.ListModels, models_pb2.ListModelsRequest(model=model))
        return [read_model(each) for each in response.models]

    async def get_version(self, selector: str) -> Version:
        response = await self._call(
            lambda stubs: stubs.models.GetVersion, models_pb2.GetVersionRequest(selector=selector)
        )
        return read_version(response.version)

    async def watch(self, model: str, deliver: Callable[[ModelChange], None]) -> None:
        """Delivers changes until cancelled; a broken connection is made anew for as long as `timeout_s` allows."""
        attempts: Attempts | None = None
        while True:
            index = self._caller.targets.choose(self._caller.clock())
            try:
                async for change in self._changes(model, index):
                    attempts = None
                    deliver(change)
            except RewardClientError as error:
                error.target = self._caller.targets.name(index)
                attempts = attempts or Attempts(self._caller.clock() + self._timeout_s)
                await self._caller.pause(error, attempts, index)

    def close(self) -> None:
        """Closes the connections."""
        self._caller.close()

    async def _call(self, method: Callable[..., Any], request: Any) -> Any:
        with _says_the_limit(self._timeout_s):
            return await self._caller.call(method, request, self._caller.clock() + self._timeout_s)

    async def _changes(self, model: str, index: int) -> AsyncIterator[ModelChange]:
        """The changes that one connection brings. Raises the error that ends it."""
        channels = self._caller.channels
        call = channels.stubs(index).models.WatchModels(
            models_pb2.WatchModelsRequest(model=model), metadata=channels.metadata
        )
        try:
            async with aclosing(answers_of(call)) as changes:
                async for change in changes:
                    yield read_change(change)
        except grpc.RpcError:
            raise error_of(call) from None
        # Orderly, as when the connection has reached its greatest age.
        raise ServerUnreachable("the server ended the watch")


@contextmanager
def _says_the_limit(timeout_s: float) -> Iterator[None]:
    """A deadline's error names the limit of the whole call, not what the last attempt had left of it."""
    try:
        yield
    except DeadlineExceeded as error:
        error.timeout_s = timeout_s
        raise
