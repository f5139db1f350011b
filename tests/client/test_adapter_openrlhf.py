"""The file is loaded and called the way OpenRLHF 0.11 does it (`openrlhf/utils/agent.py`)."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from rm_api.v1 import scoring_pb2

import ppo_client.adapters.openrlhf as file
from ppo_client import RewardClient, errors
from ppo_client.adapters import clients
from ppo_client.adapters.failure import RewardFailed

from .conftest import QUICK
from .fake_server import FakeServer, change, fail


@pytest.fixture
def reward_func(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """As OpenRLHF loads it: from the file, under another name."""
    monkeypatch.setattr(clients, "_clients", {})
    monkeypatch.setenv("RM_TARGET", server.address)
    monkeypatch.setenv("RM_MODEL", "length@stable")
    spec = importlib.util.spec_from_file_location("reward_func", file.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., dict[str, Any]] = module.reward_func
    return function


async def rollout(reward_func: Callable[..., dict[str, Any]], query: str) -> dict[str, Any] | None:
    """One sample's reward, with the net that OpenRLHF's rollout spreads under it."""
    try:
        return await asyncio.to_thread(reward_func, [query], ["p"], ["label"])
    except Exception:
        return None


def test_rollouts_get_the_shape_that_the_reward_servers_answer_with(
    server: FakeServer, reward_func: Callable[..., dict[str, Any]]
) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(rollout(reward_func, "p" + "x" * size) for size in range(3)))

    assert asyncio.run(main()) == [
        {"rewards": [size + 1.0], "scores": [size + 1.0], "extra_logs": {"rm_version": [1.0], "rm_truncated": [0.0]}}
        for size in range(3)
    ]
    assert all(request.options.rendered for request in server.requests)
    assert {request.groups[0].prompt.text for request in server.requests} == {"p"}


def test_a_query_that_lost_the_beginning_of_its_prompt_stands_alone(
    server: FakeServer, reward_func: Callable[..., dict[str, Any]]
) -> None:
    assert reward_func(["long: yes"], ["too long: "], [None])["rewards"] == [9.0]
    assert server.requests[0].groups[0].prompt.text == ""


def test_a_composite_s_components_are_logged(server: FakeServer, reward_func: Callable[..., dict[str, Any]]) -> None:
    def add_parts(response: scoring_pb2.ScoreResponse) -> None:
        for number, result in enumerate(response.results):
            result.score.components.add(name="grammar", value=0.5 + number, weight=2.0)
            result.score.components.add(name="length", value=-0.25, weight=1.0)

    server.will(change(add_parts))
    logs = reward_func(["a", "b"], ["", ""], [None, None])["extra_logs"]
    assert (logs["component/grammar"], logs["component/length"]) == ([0.5, 1.5], [-0.25, -0.25])


def test_prompt_and_completion_may_go_apart(
    server: FakeServer, reward_func: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RM_CONTENT", "split")
    assert reward_func(["question: yes"], ["question: "], [None])["rewards"] == [3.0]
    assert server.requests[0].groups[0].prompt.text == "question: "
    with pytest.raises(RewardFailed, match="does not begin with its prompt"):
        reward_func(["tion: yes"], ["question: "], [None])


def test_no_queries_have_no_rewards(reward_func: Callable[..., dict[str, Any]]) -> None:
    assert reward_func([], [], [])["rewards"] == []


def test_a_failure_passes_through_the_net(server: FakeServer, reward_func: Callable[..., dict[str, Any]]) -> None:
    server.will(fail(grpc.StatusCode.FAILED_PRECONDITION, "NON_FINITE_SCORE"))
    with pytest.raises(RewardFailed, match="NonFiniteScore: as told") as caught:
        asyncio.run(rollout(reward_func, "px"))
    assert isinstance(caught.value.__cause__, errors.NonFiniteScore)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("RM_MODEL", "", "Set RM_MODEL"), ("RM_TARGET", "", "RM_TARGET"), ("RM_CONTENT", "x", "x")],
)
def test_a_worker_without_its_environment_fails_loudly(
    reward_func: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RewardFailed, match=f"InvalidSettings.*{says}"):
        asyncio.run(rollout(reward_func, "px"))


def test_a_file_of_ones_own_sets_more(server: FakeServer) -> None:
    with RewardClient(server.address, retry=QUICK) as client:
        function = file.RewardFunction(client, "length", calibrated=True)
        assert function(["xx"], ["x"], [None])["rewards"] == [20.0]
