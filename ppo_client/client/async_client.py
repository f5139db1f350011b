"""AsyncRewardClient: the same client for programs that await."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

from ppo_client.client.catalog import Lease, Model, ModelChange, RunStatus, Trained, Version
from ppo_client.client.core import Core, Delivery, Work
from ppo_client.client.explanation import Explanation
from ppo_client.client.score_call import ScoreOptions, TruncationRule
from ppo_client.client.scores import Content, Scores
from ppo_client.client.settings import ClientSettings, Tls, Tuning, read_settings

T = TypeVar("T")


class AsyncRewardClient:
    """RewardClient with coroutines; arguments, results and errors are the same.

    The waiting is done on a loop of its own, so one client may be used from any number of event loops, one after the
    other or at the same time, and is not slowed down by what else they do. Cancelling an awaiting task cancels the
    call, too.
    """

    def __init__(
        self,
        targets: str | Sequence[str] | None = None,
        *,
        run: str | None = None,
        token: str | None = None,
        tls: bool | str | Path | Tls | None = None,
        timeout_s: float = 60.0,
        **tuning: Unpack[Tuning],
    ) -> None:
        self._core = Core(read_settings(targets, run=run, token=token, tls=tls, timeout_s=timeout_s, **tuning))

    @property
    def settings(self) -> ClientSettings:
        """As given and found."""
        return self._core.settings

    async def score(
        self,
        model: str,
        *,
        prompts: Sequence[Content],
        completions: Sequence[Content],
        **options: Unpack[ScoreOptions],
    ) -> Scores:
        """As RewardClient.score."""
        return await self._run(self._core.score(model, prompts, completions, options))

    def submit(
        self,
        model: str,
        *,
        prompts: Sequence[Content],
        completions: Sequence[Content],
        **options: Unpack[ScoreOptions],
    ) -> asyncio.Future[Scores]:
        """Starts `score` at once, whether or not the future is awaited yet. Needs a running event loop."""
        return asyncio.wrap_future(self._core.submit(self._core.score(model, prompts, completions, options)))

    async def explain(
        self,
        model: str,
        *,
        prompt: Content = "",
        completion: Content,
        run: str | None = None,
        calibrated: bool = False,
        truncation: TruncationRule | None = None,
    ) -> Explanation:
        """As RewardClient.explain."""
        return await self._run(self._core.explain(model, prompt, completion, run, calibrated, truncation))

    async def register_run(
        self,
        model: str,
        *,
        run: str | None = None,
        lease_s: float | None = None,
        expected_digest: str | None = None,
        move: bool = False,
    ) -> Lease:
        """As RewardClient.register_run."""
        return await self._run(self._core.register_run(model, run, lease_s, expected_digest, move))

    async def renew_lease(self, model: str, *, run: str | None = None) -> Lease:
        """As RewardClient.renew_lease."""
        name = self._core.run_id(run)
        return await self._run(lambda operations: operations.renew_lease(model, name))

    async def end_run(self, model: str = "", *, run: str | None = None) -> None:
        """As RewardClient.end_run."""
        name = self._core.run_id(run)
        await self._run(lambda operations: operations.end_run(model, name))

    async def list_runs(self, model: str = "") -> list[RunStatus]:
        """As RewardClient.list_runs."""
        return await self._run(lambda operations: operations.list_runs(model, ""))

    async def run_status(self, model: str, *, run: str | None = None) -> RunStatus:
        """As RewardClient.run_status."""
        name = self._core.run_id(run)
        return await self._run(lambda operations: operations.run_status(model, name))

    async def report_outcome(
        self, model: str, metric: str, value: float, *, step: int = 0, num_samples: int = 0, run: str | None = None
    ) -> Trained:
        """As RewardClient.report_outcome."""
        return await self._run(self._core.report_outcome(model, metric, value, step, num_samples, run))

    async def list_models(self, model: str = "") -> list[Model]:
        """As RewardClient.list_models."""
        return await self._run(lambda operations: operations.list_models(model))

    async def get_version(self, selector: str) -> Version:
        """As RewardClient.get_version."""
        return await self._run(lambda operations: operations.get_version(selector))

    async def watch(self, model: str = "") -> AsyncGenerator[ModelChange, None]:
        """As RewardClient.watch: ``async for change in client.watch("helpfulness"): ...``; close it when it is left."""
        loop = asyncio.get_running_loop()
        changes: asyncio.Queue[Delivery] = asyncio.Queue()

        def deliver(change: Delivery) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changes.put_nowait, change)

        work = self._core.watch(model, deliver)
        try:
            while (change := await changes.get()) is not None:
                if isinstance(change, BaseException):
                    raise change
                yield change
        finally:
            work.cancel()

    async def close(self) -> None:
        """As RewardClient.close."""
        await asyncio.to_thread(self._core.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncRewardClient({', '.join(self.settings.targets)})"

    def __reduce__(self) -> tuple[object, ...]:
        """A copy in another process is a client with the same settings, token included."""
        return (_from_settings, (type(self), self.settings))

    async def _run(self, work: Work[T]) -> T:
        return await asyncio.wrap_future(self._core.submit(work))


def _from_settings(cls: type[AsyncRewardClient], settings: ClientSettings) -> AsyncRewardClient:
    client = cls.__new__(cls)
    client._core = Core(settings)
    return client
