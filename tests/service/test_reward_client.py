"""The client and the server, which never import each other, understand each other over a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rm_api.v1 import models_pb2
from running_server import RunningServer, running

from ppo_client import AsyncRewardClient, Content, RetryPolicy, RewardClient, errors
from rm_server.config import LimitSettings, TransportSettings

TEXTS = [f"text number {number} " + "word " * (number % 7) for number in range(40)]
PROMPTS = [f"prompt {number % 3}" for number in range(40)]
QUICK = RetryPolicy(base_backoff_s=0.005, max_backoff_s=0.1)


@pytest.fixture
def client(server: RunningServer) -> Iterator[RewardClient]:
    with RewardClient(server.app.grpc_address, run="exp-1", retry=QUICK) as client:
        yield client


def test_scores_are_those_of_the_contract_in_the_callers_order(server: RunningServer, client: RewardClient) -> None:
    scores = client.score("helpfulness@1", prompts=PROMPTS, completions=TEXTS)
    alone = [
        server.score("helpfulness@1", text, prompt=prompt).results[0].score.value
        for prompt, text in zip(PROMPTS, TEXTS, strict=True)
    ]
    np.testing.assert_allclose(scores.values, alone, atol=1e-5)
    assert (scores.model, scores.version, scores.transform) == ("helpfulness", 1, "raw_logit")
    assert len(scores.digest) == 64
    assert not any(scores.truncated)


def test_a_call_in_many_requests_has_the_scores_of_one(server: RunningServer, client: RewardClient) -> None:
    with RewardClient(server.app.grpc_address, max_items_per_request=7) as split:
        parts = split.score("helpfulness@stable", prompts=PROMPTS, completions=TEXTS)
    whole = client.score("helpfulness@stable", prompts=PROMPTS, completions=TEXTS)
    np.testing.assert_allclose(parts.values, whole.values, atol=1e-5)
    assert (parts.label, whole.label) == ("stable", "stable")


def test_token_ids_go_as_they_are(client: RewardClient) -> None:
    scores = client.score("helpfulness@1", prompts=[[5, 6], []], completions=[np.array([7, 8]), (9,)])
    assert scores.num_tokens == [4, 1]


@pytest.mark.parametrize(("prompt", "nothing"), [([5, 6], []), ("p", ""), ("p", [])])
def test_no_completion_at_all_has_no_score(client: RewardClient, prompt: Content, nothing: Content) -> None:
    with pytest.raises(errors.ItemsFailed) as caught:
        client.score("helpfulness@1", prompts=[prompt] * 2, completions=[prompt, nothing])
    assert isinstance(caught.value.errors[1], errors.EmptyItem)
    assert set(caught.value.scores) == {0}


async def test_awaited_scores_are_the_same(server: RunningServer, client: RewardClient) -> None:
    waited = client.score("helpfulness@1", prompts=PROMPTS, completions=TEXTS)
    async with AsyncRewardClient(server.app.grpc_address) as asynchronous:
        awaited = await asynchronous.score("helpfulness@1", prompts=PROMPTS, completions=TEXTS)
    assert awaited.values == pytest.approx(waited.values, abs=1e-5)


def test_errors_are_typed_from_end_to_end(client: RewardClient) -> None:
    for selector, expected in (
        ("nothing", errors.ModelNotFound),
        ("helpfulness@99", errors.VersionNotFound),
        ("helpfulness@nobody", errors.LabelNotFound),
        ("help fulness@", errors.InvalidSelector),
    ):
        with pytest.raises(expected):
            client.score(selector, prompts=["a"], completions=["b"])
    with pytest.raises(errors.VersionChanged):
        client.score("helpfulness@1", prompts=["a"], completions=["b"], expected_digest="0" * 64)
    with pytest.raises(errors.ItemsFailed) as caught:
        client.score("helpfulness@1", prompts=[[1], [1]], completions=[[2], [4_000_000_000]])
    assert isinstance(caught.value.errors[1], errors.InvalidTokenIds)
    assert set(caught.value.scores) == {0}


def test_what_the_server_takes_at_once_is_no_limit_for_callers(tmp_path: Path, versions: list[Path]) -> None:
    limits = LimitSettings(max_items_per_request=16)
    with running(tmp_path, limits=limits, transport=TransportSettings(max_message_mb=0.02)) as server:
        server.deploy("m", versions[0])
        texts = ["word " * 100] * 60
        with RewardClient(server.app.grpc_address, max_items_per_request=16, max_request_bytes=16_000) as client:
            scores = client.score("m", prompts=["p"] * 60, completions=texts, truncation="keep_end")
            assert scores.truncated == [True] * 60
        with RewardClient(server.app.grpc_address) as client, pytest.raises(errors.RequestTooLarge):
            client.score("m", prompts=["p"] * 60, completions=texts)
        with (
            RewardClient(server.app.grpc_address) as client,
            pytest.raises(errors.RequestTooLarge, match="max_request_bytes"),
        ):
            client.score("m", prompts=["p"], completions=["x" * 100_000])


def test_a_run_and_its_lease(client: RewardClient) -> None:
    lease = client.register_run("helpfulness")
    assert (lease.run, lease.version, lease.is_resumed) == ("exp-1", 1, False)
    assert client.register_run("helpfulness", expected_digest=lease.digest).is_resumed
    assert client.renew_lease("helpfulness").expire_time >= lease.expire_time
    client.end_run("helpfulness")
    with pytest.raises(errors.RunNotFound):
        client.renew_lease("helpfulness")


def test_models_versions_and_a_watch(server: RunningServer, client: RewardClient) -> None:
    (model,) = client.list_models("helpfulness")
    assert model.labels["stable"] == 1
    assert [version.state for version in model.versions][:2] == ["ready", "ready"]
    assert client.get_version("helpfulness@1").digest == model.versions[0].digest
    with client.watch("helpfulness") as watch:
        assert next(watch).change == "initial"
        server.models.SetLabel(models_pb2.SetLabelRequest(model="helpfulness", label="watched", version=2))
        change = next(change for change in watch if change.change == "labels")
        assert change.model.labels["watched"] == 2


def test_many_watches_do_not_keep_each_other_waiting(client: RewardClient) -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "reward-client-stream"]

    watches = [client.watch("helpfulness") for _ in range(40)]  # more than the loop's executor has threads
    with ThreadPoolExecutor(len(watches)) as pool:
        firsts = list(pool.map(next, watches, timeout=30))
    assert {change.change for change in firsts} == {"initial"}
    running_threads = threads()
    assert len(running_threads) == len(watches)
    for watch in watches:
        watch.close()
    for thread in running_threads:
        thread.join(timeout=30)
    assert not threads(), "a watch that is closed gives its thread back"


def test_a_server_that_drains_and_one_that_takes_over(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path / "a") as first, running(tmp_path / "b") as second:
        for server in (first, second):
            server.deploy("m", versions[0])
        done = threading.Event()
        failures: list[Exception] = []
        counts = [0] * 4
        with RewardClient([first.app.grpc_address, second.app.grpc_address], retry=QUICK) as client:

            def work(number: int) -> None:
                while not done.is_set():
                    try:
                        client.score("m@stable", prompts=["p"], completions=[f"text {counts[number]}"])
                    except Exception as error:
                        failures.append(error)
                    counts[number] += 1

            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            first.stop()
            before = list(counts)
            while not failures and any(now < then + 5 for now, then in zip(counts, before, strict=True)):
                done.wait(0.01)
            done.set()
            for thread in threads:
                thread.join()
        assert failures == []
