from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from datasets import Dataset
from tiny_models import make_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ppo_client import AsyncRewardClient, RewardClient, errors
from ppo_client.adapters.trl import AsyncRemoteReward, RemoteReward, async_remote_reward, remote_reward

from .conftest import QUICK
from .fake_server import DIGESTS, FakeServer, as_version, change, fail, fail_items

MODEL = "length@stable"


@pytest.fixture(params=["sync", "async"])
def make_reward(server: FakeServer, request: pytest.FixtureRequest) -> Callable[..., Any]:
    def make(model: str = MODEL, **options: Any) -> Any:
        if request.param == "sync":
            return remote_reward(RewardClient(server.address, retry=QUICK), model, **options)
        return async_remote_reward(AsyncRewardClient(server.address, retry=QUICK), model, **options)

    return make


def call(reward: Any, *arguments: Any, **columns: Any) -> list[float]:
    result = reward(*arguments, **columns)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def test_text_goes_as_it_is(server: FakeServer, make_reward: Callable[..., Any]) -> None:
    reward = make_reward()
    rewards = call(reward, prompts=["p", "p"], completions=["a", "bb"], completion_ids=[[1], [2, 3]], topic=["x", "y"])
    assert rewards == [1.0, 2.0]
    assert all(type(value) is float for value in rewards)
    (group,) = server.requests[0].groups
    assert group.prompt.text == "p"


def test_conversations_go_as_they_are(server: FakeServer, make_reward: Callable[..., Any]) -> None:
    prompt = [{"role": "user", "content": "p"}]
    completions = [
        [{"role": "assistant", "content": "a"}],
        [{"role": "assistant", "content": "bb", "tool_calls": None}],
    ]
    assert call(make_reward(), prompts=[prompt, prompt], completions=completions) == [1.0, 2.0]
    assert server.requests[0].groups[0].completions[1].messages.messages[0].role == "assistant"


def test_ids_go_instead_when_the_prompt_can_be_turned_into_ids(
    server: FakeServer, make_reward: Callable[..., Any]
) -> None:
    reward = make_reward(prompt_to_ids=lambda prompt: [ord(letter) for letter in prompt])
    assert call(reward, prompts=["p"], completions=["bb"], completion_ids=[[2, 3]]) == [5.0]
    assert list(server.requests[0].groups[0].prompt.token_ids.ids) == [ord("p")]
    with pytest.raises(errors.InvalidRequest, match="completion_ids"):
        call(reward, prompts=["p"], completions=["bb"])


def test_options_name_and_metrics(server: FakeServer, make_reward: Callable[..., Any]) -> None:
    reward = make_reward(name="quality", calibrated=True)
    logged: dict[str, float] = {}
    server.will(change(lambda response: setattr(response.results[0], "truncated", True)))
    assert call(reward, prompts=["p", "p"], completions=["a", "bb"], log_metric=logged.__setitem__) == [10.0, 20.0]
    assert logged == {"quality/version": 1.0, "quality/truncated": 0.5}
    assert reward.__name__ == "quality"


def test_a_change_of_version_is_said(
    server: FakeServer, make_reward: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    reward = make_reward()
    call(reward, prompts=["p"], completions=["a"])
    assert not caplog.records
    server.will(as_version(2))
    call(reward, prompts=["p"], completions=["a"])
    assert f"version 2, digest {DIGESTS[2][:12]}" in caplog.text


def test_a_failure_is_raised_and_never_none(server: FakeServer, make_reward: Callable[..., Any]) -> None:
    server.will(fail(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"))
    with pytest.raises(errors.ModelNotFound):
        call(make_reward(), prompts=["p"], completions=["a"])


def test_an_empty_completion_is_worth_what_was_said(server: FakeServer, make_reward: Callable[..., Any]) -> None:
    reward = make_reward(empty_score=-2)
    given = {"prompts": ["p", "q", "q"], "completions": ["a", "", "bbb"]}
    rewards = call(reward, **given)
    assert rewards == [1.0, -2.0, 3.0]
    assert all(type(value) is float for value in rewards)
    assert [group.prompt.text for group in server.requests[0].groups] == ["p", "q"]
    empty = [{"role": "assistant", "content": ""}]
    assert call(reward, prompts=[[{"role": "user", "content": "p"}]], completions=[empty]) == [-2.0]
    with pytest.raises(errors.UnsupportedContent, match="completion 0 is None"):
        call(reward, prompts=["p"], completions=[None])
    with pytest.raises(errors.InvalidSettings, match="must be a finite number, got nan"):
        call(make_reward(empty_score=float("nan")), **given)  # to TRL, a row to leave out
    assert call(make_reward(empty_score=-2, prompt_to_ids=lambda _: [1]), **given, completion_ids=[[2], [], [3]]) == [
        2.0,
        -2.0,
        3.0,
    ]


def test_what_an_empty_completion_is_worth_is_asked_where_it_has_no_score(
    server: FakeServer, make_reward: Callable[..., Any]
) -> None:
    server.will(fail_items(1, reason="EMPTY_ITEM"))
    with pytest.raises(errors.ItemsFailed, match=r"EmptyItem: as told.*Set empty_score"):
        call(make_reward(), prompts=["p", "p"], completions=["a", ""])
    for reason, completion in (("ITEM_TOO_LONG", ""), ("EMPTY_ITEM", "b")):  # the latter had no prompt, or white space
        server.will(fail_items(1, reason=reason))
        with pytest.raises(errors.ItemsFailed) as caught:
            call(make_reward(), prompts=["p", "p"], completions=["a", completion])
        assert "empty_score" not in str(caught.value)


def test_a_failure_counts_the_completions_that_were_not_sent(
    server: FakeServer, make_reward: Callable[..., Any]
) -> None:
    server.will(fail_items(1, reason="ITEM_TOO_LONG"))
    with pytest.raises(errors.ItemsFailed, match=r"\(1\) ItemTooLong: .* which were not sent: 3\.$") as caught:
        call(make_reward(empty_score=-2), prompts=["p"] * 5, completions=["", "a", "", "bb", "ccc"])
    assert caught.value.errors.keys() == {3}
    assert caught.value.scores == {1: 1.0, 4: 3.0}
    assert caught.value.truncated.keys() == {1, 4}


def test_the_address_is_enough(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(remote_reward(server.address, MODEL), prompts=["p"], completions=["a"]) == [1.0]
    monkeypatch.setenv("RM_TARGET", server.address)
    assert call(async_remote_reward(None, MODEL), prompts=["p"], completions=["a"]) == [1.0]


def test_they_may_be_pickled_as_trl_asks(server: FakeServer) -> None:
    for reward in (remote_reward(server.address, MODEL), async_remote_reward(server.address, MODEL, name="n")):
        copy = pickle.loads(pickle.dumps(reward))
        assert isinstance(copy, (RemoteReward, AsyncRemoteReward))
        assert copy.__name__ == reward.__name__
        assert call(copy, prompts=["p"], completions=["a"]) == [1.0]


@pytest.mark.parametrize(("trainer_cls", "config_cls"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_the_real_trainers_learn_from_it(server: FakeServer, tmp_path: Path, trainer_cls: Any, config_cls: Any) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    policy = tmp_path / "policy"
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    ).save_pretrained(policy)
    data = Dataset.from_list([{"prompt": "the one"}, {"prompt": "the other"}] * 2)
    settings = config_cls(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        max_steps=2,
        report_to=[],
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    rewards = [
        remote_reward(server.address, MODEL, name="waits"),
        async_remote_reward(server.address, MODEL, name="awaits"),
    ]
    trainer = trainer_cls(
        model=str(policy), reward_funcs=rewards, args=settings, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["rewards/waits/mean"] == entry["rewards/awaits/mean"]
    assert entry["waits/version"] == 1.0
    assert len(server.requests) == 4

    server.always = fail(grpc.StatusCode.FAILED_PRECONDITION, "NON_FINITE_SCORE")
    trainer = trainer_cls(
        model=str(policy), reward_funcs=rewards[:1], args=settings, train_dataset=data, processing_class=tokenizer
    )
    with pytest.raises(errors.NonFiniteScore):
        trainer.train()
