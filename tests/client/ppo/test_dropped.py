"""Episodes whose item failed: nothing is learnt from them, nothing counts them but the log, and the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policies import FakeRewards, PickyRewards, even_share, make_config, read_jsonl, without_times

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.checkpoint import saved_steps
from ppo_client.ppo.errors import FailedItems

DROP = {"on_failed_item": "drop"}


def parameters(trainer: PPOTrainer) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in trainer.run.actor_critic.parameters()]


def test_a_run_that_a_failed_item_ended_goes_on_without_such_episodes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = PickyRewards()
    evaluation = {"prompts": str(folder / "prompts.jsonl"), "count": 8, "every_steps": 1}
    config = make_config(folder, train={"num_steps": 4, "samples_every_steps": 1}, evaluation=evaluation)
    with pytest.raises(FailedItems, match=r'reward\.on_failed_item = "drop"'):
        PPOTrainer(config, rewards).train()
    with pytest.raises(FailedItems):
        PPOTrainer.resume(folder / "run", rewards).train()
    (begun,) = saved_steps(folder / "run")
    rewards.asked.clear()
    PPOTrainer.resume(folder / "run", rewards, ["reward.on_failed_item=drop"]).train()
    row = read_jsonl(folder / "run" / "metrics.jsonl")[begun]
    first = rewards.asked[:8]
    kept = [even_share(prompt, ids) for prompt, ids in first if not rewards.refuses(ids)]
    assert 0 < len(kept) < 8
    assert row["dropped"] == 8 - len(kept)
    assert row["score_mean"] == pytest.approx(sum(kept) / len(kept), abs=1e-6)
    assert row["episodes"] == 8 * (begun + 1)
    assert [event["kind"] for event in row["events"]] == ["setting_changed", "episodes_dropped"]
    assert f"{8 - len(kept)} of 8 episodes dropped: ItemTooLong: 73 tokens" in capsys.readouterr().err
    assert all(sample["score"] is not None for sample in read_jsonl(folder / "run" / "samples.jsonl"))
    assert 0 < read_jsonl(folder / "run" / "evaluations.jsonl")[-1]["count"] < 8


@pytest.mark.parametrize(
    "sections",
    [
        {"ppo": {"micro_batch_size": 1}},
        {"ppo": {"num_minibatches": 8}},
        {"ppo": {"whiten_rewards": True}, "kl": {"controller": "adaptive"}},
        {"critic": {"kind": "separate"}, "reward": {**DROP, "normalize_samples": 16, "missing_eos_score": -1.0}},
        {"rollout": {"max_staleness": 1}},
    ],
    ids=str,
)
def test_what_a_dropped_response_says_changes_nothing(folder: Path, sections: dict[str, Any]) -> None:
    """The score that it would have had is another, and no number of the run is."""
    rows, weights = [], []
    for name, score in (("one", even_share), ("other", lambda p, c: 50.0 if c[0] % 5 == 1 else even_share(p, c))):
        train = {"output": str(folder / name), "num_steps": 3}
        trainer = PPOTrainer(make_config(folder, **{"reward": DROP, **sections}, train=train), PickyRewards(score))
        trainer.train()
        rows.append(without_times(read_jsonl(folder / name / "metrics.jsonl")))
        weights.append(parameters(trainer))
    assert sum(row["dropped"] for row in rows[0]) > 0
    assert rows[0] == rows[1]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_an_update_is_that_of_the_other_episodes_alone(folder: Path) -> None:
    from ppo_client.ppo.scores.dropped import without_dropped
    from ppo_client.ppo.seeds import Purpose, uniforms
    from ppo_client.ppo.start import start_run
    from ppo_client.ppo.update import Batch

    found = []
    for name in ("masked", "alone"):
        config = make_config(
            folder, reward=DROP, ppo={"num_minibatches": 1}, train={"output": str(folder / name), "num_steps": 1}
        )
        run = start_run(config, PickyRewards())
        rollout, dropped = without_dropped(
            run.worker.collect(run.prompts[:8], uniforms(0, Purpose.SAMPLING, 1, range(8), 6))
        )
        assert dropped is not None
        assert dropped.num_dropped == int((~rollout.kept).sum()) == int(rollout.scores.isnan().sum()) > 0
        advantages = torch.randn(rollout.values.shape, generator=torch.Generator().manual_seed(0))
        batch = Batch(rollout.sequences, rollout.log_probs, rollout.values, advantages, advantages + rollout.values)
        if name == "alone":
            batch = batch.select(rollout.kept.nonzero().squeeze(1))
        statistics = run.updater.update(batch, 1)
        found.append((statistics, [p.detach() for p in run.actor_critic.parameters()]))
    assert found[0][0].mean == pytest.approx(found[1][0].mean, rel=1e-3, abs=1e-6)
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_a_step_of_which_nothing_is_left_ends_the_run_with_a_checkpoint(folder: Path) -> None:
    config = make_config(folder, reward=DROP)
    with pytest.raises(FailedItems, match="8 of 8 episodes dropped: ItemTooLong: 73 tokens; there is nothing to learn"):
        PPOTrainer(config, PickyRewards(refused=(0, 1, 2, 3, 4))).train()
    assert saved_steps(folder / "run") == [0]
    assert PPOTrainer.resume(folder / "run", FakeRewards()).train().step == 2


class PickyAndPromoted(PickyRewards):
    """Another version scores from the second step on, ten times as high."""

    def submit(self, model: str, **texts: Any) -> Any:
        if self.num_calls >= 2:  # one to normalise, one a step
            self.version, self.digest = 2, "2" * 64
            self.score = lambda prompt, completion: 10 * even_share(prompt, completion)
        return super().submit(model, **texts)


def test_a_version_that_is_followed_is_normalised_once_though_each_step_drops_some(folder: Path) -> None:
    reward = {**DROP, "model": "even@stable", "normalize_samples": 16}
    rewards = PickyAndPromoted(refused=(1, 2))
    trainer = PPOTrainer(make_config(folder, reward=reward, train={"num_steps": 5}), rewards)
    trainer.train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert all(row["dropped"] for row in rows[1:])
    fitted = [row["step"] for row in rows for event in row["events"] if event["kind"] == "normalizer_fitted"]
    assert fitted == [2]
    assert not trainer.state.normalizer.is_provisional
