"""The functions are wrapped and called the way verl 0.9 does it (`verl/trainer/ppo/reward.py`, reward managers)."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

from ppo_client import errors
from ppo_client.adapters import clients
from ppo_client.adapters.failure import RewardFailed

from .fake_server import FakeServer, fail, fail_items, wait_until_cancelled

ROW = {"data_source": "stories", "ground_truth": "", "extra_info": {"prompt": "p", "index": 7}}


@pytest.fixture(autouse=True)
def own_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_clients", {})


def load(name: str, server: FakeServer, **reward_kwargs: Any) -> Any:
    """As verl does it for `pkg://ppo_client.adapters.verl` with the configured `reward_kwargs`."""
    function = getattr(importlib.import_module("ppo_client.adapters.verl"), name)
    configured = {"model": "length@stable", "targets": server.address} | reward_kwargs
    if inspect.iscoroutinefunction(function):

        async def call_async(**given: Any) -> Any:
            return await function(**{**given, **configured})

        return partial(call_async)
    return partial(lambda **given: function(**{**given, **configured}))


def score(function: Any, **given: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return asyncio.run(function(**given))
    return function(**given)


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_one_answer(server: FakeServer, name: str) -> None:
    result = score(load(name, server), solution_str="xxx", **ROW)
    assert result == {"score": 3.0, "rm_version": 1, "rm_truncated": False}
    assert server.requests[0].groups[0].prompt.text == "p"


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_messages_as_parquet_gives_them(server: FakeServer, name: str) -> None:
    prompt = np.array([{"role": "user", "content": "p"}], dtype=object)
    given = ROW | {"extra_info": {"raw": prompt}}
    assert score(load(name, server, prompt_key="raw"), solution_str="xx", **given)["score"] == 2.0
    (group,) = server.requests[0].groups
    assert group.prompt.messages.messages[0].content == "p"
    assert group.completions[0].messages.messages[0].role == "assistant"


def test_answers_under_way_together_on_one_loop(server: FakeServer) -> None:
    function = load("compute_score_async", server)

    async def main() -> list[float]:
        results = await asyncio.gather(*(function(solution_str="x" * size, **ROW) for size in range(20)))
        return [result["score"] for result in results]

    assert asyncio.run(main()) == [float(size) for size in range(20)]


def test_a_batch_is_one_call(server: FakeServer) -> None:
    results = load("compute_score_batch", server, calibrated=True)(
        data_sources=["stories"] * 3,
        solution_strs=["x", "xx", "xxx"],
        ground_truths=[""] * 3,
        extra_infos=np.array([{"prompt": "p"}] * 3, dtype=object),
    )
    assert [row["score"] for row in results] == [10.0, 20.0, 30.0]
    assert len(server.requests) == 1


def test_without_a_prompt_only_if_told_so(server: FakeServer) -> None:
    given = ROW | {"extra_info": None}
    assert score(load("compute_score", server, prompt_key=None), solution_str="xx", **given)["score"] == 2.0
    with pytest.raises(RewardFailed, match="extra_info has no 'prompt'"):
        score(load("compute_score", server), solution_str="xx", **given)


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_a_failure_passes_through_nets_for_exceptions(server: FakeServer, name: str) -> None:
    server.will(fail(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))
    with pytest.raises(RewardFailed, match="ModelNotFound") as caught:
        score(load(name, server), solution_str="x", **ROW)
    # verl's rate-limited manager makes 0.0 of whatever is an Exception.
    assert not isinstance(caught.value, Exception)
    assert isinstance(caught.value.__cause__, errors.ModelNotFound)


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"truncatoin": "keep_end"}, "TypeError: .*'truncatoin'.*mean 'truncation'"),
        ({"model": ""}, "InvalidSettings: .*reward_kwargs.model"),
    ],
)
def test_wrong_settings_pass_through_nets_for_exceptions_too(
    server: FakeServer, name: str, wrong: dict[str, Any], says: str
) -> None:
    function = load(name, server, **wrong)
    with pytest.raises(RewardFailed, match=says):
        score(function, solution_str="x", **ROW)
    assert not server.requests


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_how_to_score_may_be_said(server: FakeServer, name: str) -> None:
    function = load(name, server, calibrated=True, truncation="keep_end", run="exp-17", priority=3)
    assert score(function, solution_str="xx", **ROW)["score"] == 20.0
    (request,) = server.requests
    assert (request.run, request.options.priority, request.options.truncation) == ("exp-17", 3, 2)


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_an_empty_answer_is_worth_what_was_said(server: FakeServer, name: str) -> None:
    function = load(name, server, empty_score=-1)
    expected = {"score": -1.0, "rm_version": 1, "rm_truncated": False}  # the keys of the others
    assert score(function, solution_str="", **ROW) == expected
    server.will(fail_items(0, reason="EMPTY_ITEM"))
    with pytest.raises(RewardFailed, match="Set empty_score"):
        score(load(name, server), solution_str="", **ROW)


def test_empty_answers_in_a_batch_are_worth_what_was_said(server: FakeServer) -> None:
    results = load("compute_score_batch", server, empty_score=-1)(
        data_sources=["stories"] * 3,
        solution_strs=["x", "", "xxx"],
        ground_truths=[""] * 3,
        extra_infos=[{"prompt": "p"}] * 3,
    )
    assert [row["score"] for row in results] == [1.0, -1.0, 3.0]


def test_several_servers_may_be_a_list_as_hydra_s_are(start_server: Callable[..., FakeServer]) -> None:
    servers = [start_server(), start_server()]
    function = load("compute_score", servers[0], targets=[server.address for server in servers])
    for _ in range(2):
        score(function, solution_str="x", **ROW)
    assert [len(server.requests) for server in servers] == [1, 1]


def test_a_call_that_is_given_up_is_no_zero(server: FakeServer) -> None:
    server.always = wait_until_cancelled
    function = load("compute_score_async", server)

    async def limited() -> Any:
        """As verl's rate-limited manager does it."""
        try:
            return await asyncio.wait_for(function(solution_str="x", **ROW), 0.1)
        except TimeoutError:
            return 0.0

    with pytest.raises(RewardFailed, match="was given up"):
        asyncio.run(limited())


def test_a_failed_batch(server: FakeServer) -> None:
    server.will(fail(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))
    with pytest.raises(RewardFailed):
        load("compute_score_batch", server)(
            data_sources=["s"], solution_strs=["x"], ground_truths=[""], extra_infos=[{"prompt": "p"}]
        )


def test_one_client_for_each_service(server: FakeServer) -> None:
    assert clients.shared_client(server.address) is clients.shared_client(server.address)
    assert clients.shared_client(server.address) is not clients.shared_client("localhost:1")
