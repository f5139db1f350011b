"""A server that does as it is told, and a client in both forms with one face for the tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ppo_client import AsyncRewardClient, RetryPolicy, RewardClient, Scores

from .fake_server import FakeServer

QUICK = RetryPolicy(base_backoff_s=0.002, max_backoff_s=0.02)


@pytest.fixture
def start_server() -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(**settings: Any) -> FakeServer:
        servers.append(FakeServer(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(start_server: Callable[..., FakeServer]) -> FakeServer:
    return start_server()


class BlockingAsyncClient:
    """AsyncRewardClient, called as RewardClient is."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.client = AsyncRewardClient(*arguments, **settings)
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        return lambda *arguments, **options: self._runner.run(method(*arguments, **options))

    def finish(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()


Connect = Callable[..., RewardClient]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients, of the one kind and of the other."""
    clients: list[Any] = []

    def make(*targets: str, **settings: Any) -> Any:
        settings.setdefault("retry", QUICK)
        settings.setdefault("timeout_s", 20.0)
        kind = RewardClient if request.param == "sync" else BlockingAsyncClient
        clients.append(kind(list(targets), **settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close() if isinstance(client, RewardClient) else client.finish()


def score(client: Any, *completions: Any, model: str = "length", **options: Any) -> Scores:
    """Scores of these completions, all of one prompt."""
    prompt: Any = "p" if not completions or isinstance(completions[0], str) else [1]
    result: Scores = client.score(model, prompts=[prompt] * len(completions), completions=list(completions), **options)
    return result
