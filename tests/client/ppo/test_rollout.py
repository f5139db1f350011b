"""Scores are asked for while the rest goes on; what is sent is what was sampled; chunks change nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, EOS_ID, VOCAB_SIZE, make_tokenizer
from tiny_policies import FakeRewards, even_share, make_config, make_scores, read_jsonl, save_policy

from ppo_client.client.scores import Content, Scores
from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.checkpoint import latest_checkpoint
from ppo_client.ppo.config import RewardConfig, RewardModelConfig
from ppo_client.ppo.errors import EmptyResponse
from ppo_client.ppo.models.run_models import load_models
from ppo_client.ppo.prompts import make_prompt
from ppo_client.ppo.rollout import Rollout, RolloutWorker
from ppo_client.ppo.scores.reward_source import RewardDesk, RewardSource
from ppo_client.ppo.scores.waiting import Patience
from ppo_client.ppo.seeds import Purpose, uniforms

PROMPTS: tuple[list[int], ...] = ([7, 8], [9, 10, 11, 12, 13], [14], [15, 16, 17])
NUM_TOKENS = 20
EOS_IDS = (EOS_ID, *range(100, 120))


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_policy(tmp_path_factory.mktemp("policy"), "llama")
    # So many that a random policy meets one of them now and then.
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(EOS_IDS)}))
    return folder


def make_worker(
    folder: Path,
    source: RewardSource,
    *,
    kind: str = "shared",
    size: int = 4,
    from_sampling: bool = True,
    lora: dict[str, Any] | None = None,
) -> RolloutWorker:
    config = make_config(
        folder.parent,
        policy={"model": str(folder)},
        critic={"kind": kind},
        lora=lora or {},
        rollout={"max_response_tokens": NUM_TOKENS, "temperature": 0.8},
    )
    tokenizer = make_tokenizer()
    models = load_models(config, tokenizer, torch.device("cpu"))
    return RolloutWorker(
        actor_critic=models.actor_critic.eval(),
        reference=models.reference,
        desk=RewardDesk(source, (RewardModelConfig("even"),), Patience(0.0)),
        tokenizer=tokenizer,
        micro_batch_size=size,
        log_probs_from_sampling=from_sampling,
        device=torch.device("cpu"),
    )


def collect(worker: RolloutWorker, prompts: Sequence[Any] = PROMPTS, reward: RewardConfig | None = None) -> Rollout:
    reward = reward or RewardConfig(input="token_ids")
    made = [make_prompt(prompt, reward, worker.tokenizer, "test") for prompt in prompts]
    return worker.collect(made, uniforms(0, Purpose.SAMPLING, 1, range(len(made)), NUM_TOKENS))


@pytest.fixture(scope="module")
def folders(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One policy of each family."""
    found = {"llama": policy_folder}
    for family in ("t5", "bart"):
        found[family] = save_policy(tmp_path_factory.mktemp(family), family)
        (found[family] / "generation_config.json").write_text(json.dumps({"eos_token_id": list(EOS_IDS)}))
    return found


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_the_kl_of_a_copy_is_zero(folders: dict[str, Path], kind: str, family: str) -> None:
    noted = collect(make_worker(folders[family], FakeRewards(), kind=kind))
    assert float((noted.log_probs - noted.reference_log_probs).sum(1).abs().max()) < 1e-4
    passed = collect(make_worker(folders[family], FakeRewards(), kind=kind, from_sampling=False))
    assert torch.equal(passed.log_probs, passed.reference_log_probs)
    assert torch.equal(noted.sequences.response_ids, passed.sequences.response_ids)
    assert torch.allclose(noted.values, passed.values, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_the_kl_of_a_new_adapter_is_exactly_zero(folders: dict[str, Path], kind: str, family: str) -> None:
    worker = make_worker(folders[family], FakeRewards(), kind=kind, from_sampling=False, lora={"rank": 2}, size=3)
    rollout = collect(worker)
    assert torch.equal(rollout.log_probs, rollout.reference_log_probs)
    assert bool(rollout.log_probs.any())


def test_micro_batches_change_nothing(policy_folder: Path) -> None:
    whole = collect(make_worker(policy_folder, FakeRewards(), size=4))
    rewards = FakeRewards()
    parts = collect(make_worker(policy_folder, rewards, size=3))
    assert rewards.num_calls == 2
    assert torch.equal(whole.sequences.response_ids, parts.sequences.response_ids)
    assert torch.equal(whole.sequences.prompts.ids, parts.sequences.prompts.ids)
    assert torch.equal(whole.scores, parts.scores)
    assert torch.allclose(whole.log_probs, parts.log_probs, atol=1e-5)
    assert torch.allclose(whole.reference_log_probs, parts.reference_log_probs, atol=1e-5)


def test_ids_are_sent_as_they_were_sampled(policy_folder: Path) -> None:
    rewards = FakeRewards()
    rollout = collect(make_worker(policy_folder, rewards))
    lengths = rollout.sequences.response_mask.sum(1).tolist()
    sampled = [row[:n] for row, n in zip(rollout.sequences.response_ids.tolist(), lengths, strict=True)]
    assert rewards.asked == list(zip(PROMPTS, sampled, strict=True))
    assert bool(rollout.has_eos.any())
    for ids, ended in zip(sampled, rollout.has_eos.tolist(), strict=True):
        assert (ids[-1] in EOS_IDS) == ended
        assert not set(EOS_IDS) & set(ids[:-1])
    assert rollout.scores.tolist() == pytest.approx([even_share([], ids) for ids in sampled])


def test_text_is_sent_without_special_tokens(policy_folder: Path) -> None:
    rewards = FakeRewards()
    worker = make_worker(policy_folder, rewards)
    rollout = collect(worker, ["one", "two and the rest"], RewardConfig(prompt_template="Q: {prompt}"))
    assert [prompt for prompt, _ in rewards.asked] == ["Q: one", "Q: two and the rest"]
    for row, (_, completion) in enumerate(rewards.asked):
        ids = rollout.sequences.response_ids[row][rollout.sequences.response_mask[row]].tolist()
        ids = ids[:-1] if rollout.has_eos[row] else ids
        assert completion == worker.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(completion, str)
        assert "<eos>" not in completion
    assert [record.completion for record in rollout.records] == [completion for _, completion in rewards.asked]


def test_a_chat_gets_an_answer_from_the_assistant(policy_folder: Path) -> None:
    rewards = FakeRewards(score=lambda prompt, completion: 1.0)
    worker = make_worker(policy_folder, rewards)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    messages = [{"role": "user", "content": "hi"}]
    rollout = collect(replace(worker, tokenizer=tokenizer), [messages], RewardConfig())
    assert rewards.asked == [(messages, [{"role": "assistant", "content": rollout.records[0].completion}])]


class Watching:
    """Answers only when the test says so, and notes what the worker did in the meantime."""

    def __init__(self) -> None:
        self.futures: list[tuple[Future[Scores], int]] = []
        self.log: list[str] = []

    def submit(
        self, model: str, *, prompts: Sequence[Content], completions: Sequence[Content], calibrated: bool = False
    ) -> Future[Scores]:
        self.log.append("asked")
        future: Future[Scores] = Future()
        self.futures.append((future, len(completions)))
        return future

    def answer(self) -> None:
        for future, count in self.futures:
            if not future.done():
                future.set_result(make_scores([1.0] * count))


def test_scores_are_asked_for_before_the_reference_is_computed(policy_folder: Path) -> None:
    source = Watching()
    worker = make_worker(policy_folder, source, size=2)
    passes = 0

    def noting(*_: Any) -> None:
        nonlocal passes
        passes += 1
        source.log.append("reference")
        if passes == 2:  # nothing is left to do but wait
            source.answer()

    worker.reference.register_forward_hook(noting)
    collect(worker)
    assert source.log == ["asked", "asked", "reference", "reference"]


def test_when_it_fails_the_other_requests_are_given_up(policy_folder: Path) -> None:
    source = Watching()
    worker = make_worker(policy_folder, source, size=2)

    def once(*_: Any) -> None:
        if not source.futures[0][0].done():
            source.futures[0][0].set_exception(ConnectionError("gone"))

    worker.reference.register_forward_hook(once)
    with pytest.raises(ConnectionError):
        collect(worker)
    assert source.futures[1][0].cancelled()


def test_the_shared_critic_costs_no_forward_pass(policy_folder: Path) -> None:
    worker = make_worker(policy_folder, FakeRewards())
    calls = []
    worker.actor_critic.register_forward_hook(lambda *_: calls.append("whole"))
    worker.actor_critic.policy.register_forward_hook(lambda *_: calls.append("policy"))
    collect(worker)
    assert calls == []


def with_text_prompts(folder: Path) -> None:
    """Text prompts, and a policy of which every third token or so ends the response."""
    rows = [{"prompt": f"number {row}"} for row in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ids = [EOS_ID, *range(100, 180)]
    (folder / "policy" / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")


EMPTY: dict[str, Any] = {"rollout": {"min_response_tokens": 0}, "reward": {"input": "text"}}


def test_an_empty_response_is_not_sent_and_gets_the_score_of_the_settings(folder: Path) -> None:
    with_text_prompts(folder)
    rewards = FakeRewards(score=lambda prompt, completion: 0.5)
    settings: dict[str, Any] = {**EMPTY, "reward": {"input": "text", "empty_score": -1.0}}
    config = make_config(folder, **settings, train={"samples_every_steps": 1, "samples_per_step": 8})
    trainer = PPOTrainer(config, rewards)
    trainer.train_step()
    samples = read_jsonl(folder / "run" / "samples.jsonl")
    empty = [sample for sample in samples if not sample["completion"]]
    assert 0 < len(empty) < len(samples) == 8
    assert all(completion for _, completion in rewards.asked)
    assert len(rewards.asked) == 8 - len(empty)
    assert all((sample["score"], sample["version"]) == (-1.0, None) for sample in empty)
    assert all((s["score"], s["version"]) == (0.5, 1) for s in samples if s not in empty)
    (row,) = read_jsonl(folder / "run" / "metrics.jsonl")
    assert row["empty_rate"] == len(empty) / 8
    assert row["score_mean"] == pytest.approx(0.5 - 1.5 * len(empty) / 8)


def test_an_empty_response_without_a_score_names_the_settings_and_leaves_two_ways_on(folder: Path) -> None:
    with_text_prompts(folder)
    with pytest.raises(EmptyResponse, match=r"reward\.empty_score .* rollout\.min_response_tokens"):
        PPOTrainer(make_config(folder, **EMPTY), FakeRewards()).train()
    assert latest_checkpoint(folder / "run").name == "step-000000"
    PPOTrainer.resume(folder / "run", FakeRewards(), ["reward.empty_score=0", "train.num_steps=2"]).train()
    shutil.rmtree(folder / "run")
    with pytest.raises(EmptyResponse):
        PPOTrainer(make_config(folder, **EMPTY), FakeRewards()).train()
    # Nothing has been learnt there, so a run with other settings may start in its place.
    PPOTrainer(make_config(folder, reward={"input": "text"}), FakeRewards())
    assert not (folder / "run" / "checkpoints").exists()


def test_a_first_step_without_any_text_is_an_error(folder: Path) -> None:
    with_text_prompts(folder)
    (folder / "policy" / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(VOCAB_SIZE))}))
    settings: dict[str, Any] = {**EMPTY, "reward": {"input": "text", "empty_score": -1.0}}
    with pytest.raises(EmptyResponse, match="all 8 responses are empty"):
        PPOTrainer(make_config(folder, **settings), FakeRewards()).train()


def test_a_later_step_without_any_text_is_logged_as_such_whatever_the_number_of_models(folder: Path) -> None:
    with_text_prompts(folder)
    models = [{"model": "one@1"}, {"model": "two@1"}]
    settings: dict[str, Any] = {
        **EMPTY,
        "reward": {"input": "text", "empty_score": -1.0, "model": "", "models": models},
    }
    trainer = PPOTrainer(make_config(folder, **settings), FakeRewards())
    trainer.train_step()
    policy = trainer.run.actor_critic.policy
    policy.rule = replace(policy.rule, eos_ids=tuple(range(VOCAB_SIZE)))
    trainer.train_step()
    before, row = read_jsonl(folder / "run" / "metrics.jsonl")
    assert {"score_mean/one", "score_mean/two"} == {name for name in before.keys() - row.keys() if "/" in name}
    assert (row["empty_rate"], row["score_mean"]) == (1.0, -1.0)
    assert row["reward_versions"] == before["reward_versions"]


class OfTwoVersions(FakeRewards):
    """Version 2's scores are higher by 1."""

    def submit(self, model: str, **texts: Any) -> Any:
        self.version = int(model.partition("@")[2])
        self.score = lambda prompt, completion: even_share(prompt, completion) + self.version - 1
        return super().submit(model, **texts)


def test_two_versions_of_one_model_have_a_mean_each(folder: Path) -> None:
    models = [{"model": "even@1"}, {"model": "even@2", "weight": 0.5}]
    trainer = PPOTrainer(make_config(folder, reward={"model": "", "models": models}), OfTwoVersions())
    trainer.train_step()
    (row,) = read_jsonl(folder / "run" / "metrics.jsonl")
    assert row["score_mean/even@2"] == pytest.approx(row["score_mean/even@1"] + 1)
    assert row["score_mean"] == pytest.approx(row["score_mean/even@1"] + 0.5 * row["score_mean/even@2"])
