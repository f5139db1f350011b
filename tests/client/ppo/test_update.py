"""The update: how many real steps, what a micro-batch changes (nothing), when it stops, what it refuses."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_models import EOS_ID
from tiny_policies import ENCODER_DECODERS, KINDS, FakeRewards, make_config, save_policy

from ppo_client.ppo.errors import GenerationMismatch, NonFiniteUpdate
from ppo_client.ppo.run import Run
from ppo_client.ppo.seeds import minibatch_order
from ppo_client.ppo.start import start_run
from ppo_client.ppo.update import Batch, UpdateStatistics


def make_run(folder: Path, name: str = "run", **ppo: Any) -> Run:
    return start_run(make_config(folder, ppo=ppo, train={"output": str(folder / name)}), FakeRewards())


def make_batch(run: Run) -> Batch:
    """Episodes of the run's own policy, with made-up advantages and returns."""
    from ppo_client.ppo.seeds import Purpose, uniforms

    rollout = run.worker.collect(run.prompts[:8], uniforms(0, Purpose.SAMPLING, 1, range(8), 6))
    mask = rollout.sequences.response_mask
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(mask.shape, generator=generator) * mask
    returns = torch.randn(mask.shape, generator=generator) * mask
    return Batch(rollout.sequences, rollout.log_probs, rollout.values, advantages, returns)


def parameters(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.actor_critic.parameters()]


def update(run: Run, batch: Batch | None = None) -> UpdateStatistics:
    return run.updater.update(batch or make_batch(run), step=1)


def test_the_first_minibatch_has_a_ratio_of_one(folder: Path) -> None:
    statistics = update(make_run(folder))
    assert statistics.first.ratio == pytest.approx(1.0, abs=1e-5)
    assert statistics.first.max_log_ratio < 1e-4
    assert statistics.first.clip_fraction == 0.0
    assert statistics.first.approx_kl == pytest.approx(0.0, abs=1e-7)
    assert statistics.mean.max_log_ratio > 1e-3, "later minibatches come after a step"


@pytest.mark.parametrize(("num_epochs", "num_minibatches"), [(1, 1), (3, 2), (2, 4)])
def test_epochs_times_minibatches_real_steps(folder: Path, num_epochs: int, num_minibatches: int) -> None:
    run = make_run(folder, num_epochs=num_epochs, num_minibatches=num_minibatches, micro_batch_size=1)
    steps = []
    run.updater.optimizer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    statistics = update(run)
    assert statistics.num_optimizer_steps == len(steps) == num_epochs * num_minibatches
    assert not statistics.stopped_early


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_micro_batches_change_memory_and_nothing_else(folder: Path, critic: str) -> None:
    results = []
    for name, size in (("whole", None), ("ones", 1), ("threes", 3)):
        config = make_config(
            folder,
            critic={"kind": critic},
            ppo={"micro_batch_size": size, "entropy_coefficient": 0.01, "learning_rate": 1e-4},
            train={"output": str(folder / name)},
        )
        run = start_run(config, FakeRewards())
        batch = make_batch(run)
        lengths = batch.sequences.response_mask.sum(1)
        batch.sequences.response_mask[0, 2:] = False  # lengths that differ, so that tokens and rows weigh differently
        assert len(lengths) == 8
        results.append((update(run, batch), parameters(run)))
    for statistics, tensors in results[1:]:
        assert statistics.mean[:6] == pytest.approx(results[0][0].mean[:6], rel=1e-3, abs=1e-6)
        assert statistics.gradient_norm == pytest.approx(results[0][0].gradient_norm, rel=1e-4)
        for one, other in zip(tensors, results[0][1], strict=True):
            assert torch.allclose(one, other, atol=2e-6)


def test_the_same_seed_gives_the_same_bits(folder: Path) -> None:
    runs = [make_run(folder, name) for name in ("a", "b")]
    for run in runs:
        update(run)
    assert all(torch.equal(a, b) for a, b in zip(parameters(runs[0]), parameters(runs[1]), strict=True))


def test_an_update_stops_before_the_minibatch_that_is_too_far(folder: Path) -> None:
    run = make_run(folder, stop_kl=1e-6, learning_rate=1e-2)
    statistics = update(run)
    assert statistics.stopped_early
    assert statistics.num_optimizer_steps == 1
    assert all(p.grad is None or not bool(p.grad.any()) for p in run.actor_critic.parameters())


def test_an_update_that_is_too_far_from_the_start_makes_no_step(folder: Path) -> None:
    before = parameters(run := make_run(folder, stop_kl=0.01))
    batch = make_batch(run)
    statistics = run.updater.update(replace(batch, log_probs=batch.log_probs - 0.5), step=2)
    assert (statistics.stopped_early, statistics.num_optimizer_steps, statistics.gradient_norm) == (True, 0, 0.0)
    assert statistics.mean == statistics.first
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(run), strict=True))


def test_the_gradient_norm_is_a_mean_over_the_steps(folder: Path) -> None:
    runs = [make_run(folder, f"{n}", num_epochs=n, num_minibatches=1, learning_rate=1e-12) for n in (1, 3)]
    once, thrice = (update(run).gradient_norm for run in runs)
    assert thrice == pytest.approx(once, rel=1e-3)


def test_gradients_are_clipped(folder: Path) -> None:
    before = parameters(run := make_run(folder, max_grad_norm=1e-12))
    statistics = update(run)
    assert statistics.gradient_norm > 1e-3
    # Adam divides by the gradient's own size, but for ε: with nothing but ε left, next to nothing moves.
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(before, parameters(run), strict=True))


@pytest.mark.parametrize("lora", [{}, {"rank": 2}], ids=["full", "lora"])
def test_what_a_separate_critic_learns_takes_nothing_from_the_policy(folder: Path, lora: Any) -> None:
    policies, norms = [], []
    for scale in (1.0, 1000.0):
        config = make_config(
            folder,
            critic={"kind": "separate"},
            lora=lora,
            ppo={"max_grad_norm": 1e-3, "num_epochs": 1, "num_minibatches": 1},
            train={"output": str(folder / f"times-{scale}")},
        )
        run = start_run(config, FakeRewards())
        batch = make_batch(run)
        statistics = update(run, replace(batch, returns=scale * batch.returns))
        policies.append([parameter.detach().clone() for parameter in run.actor_critic.policy.parameters()])
        assert statistics.critic_gradient_norm is not None
        norms.append((statistics.gradient_norm, statistics.critic_gradient_norm))
    assert all(torch.equal(one, other) for one, other in zip(*policies, strict=True))
    assert norms[1][0] == norms[0][0]
    assert norms[1][1] > 100 * norms[0][1]


def test_a_separate_critic_may_learn_at_a_rate_of_its_own(folder: Path) -> None:
    def change(name: str, rate: float) -> tuple[list[torch.Tensor], torch.Tensor]:
        critic = {"kind": "separate", "learning_rate": rate}
        ppo = {"num_epochs": 1, "num_minibatches": 1, "schedule": "linear", "warmup_steps": 1}
        run = start_run(
            make_config(folder, critic=critic, ppo=ppo, train={"output": str(folder / name)}), FakeRewards()
        )
        run.updater.update(make_batch(run), step=2)
        policy = [parameter.detach().clone() for parameter in run.actor_critic.policy.parameters()]
        return policy, run.actor_critic.critic.head.linear.bias.detach().clone()

    policy, bias = change("as the policy", 0.0)
    same_policy, moved_bias = change("five times", 5e-3)
    assert all(torch.equal(one, other) for one, other in zip(policy, same_policy, strict=True))
    assert float(bias.abs()) > 0
    assert torch.allclose(moved_bias, 5 * bias, rtol=1e-3)


def test_a_gradient_that_is_not_finite_changes_no_parameter(folder: Path) -> None:
    run = make_run(folder)
    batch = make_batch(run)
    before = parameters(run)
    poisoned = replace(batch, advantages=torch.where(batch.advantages != 0, float("nan"), 0.0))
    with pytest.raises(NonFiniteUpdate, match="the parameters were left as they were"):
        update(run, poisoned)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(run), strict=True))


def test_a_minibatch_whose_episodes_are_all_dropped_is_no_step_that_was_made(folder: Path) -> None:
    run = make_run(folder, num_epochs=1, num_minibatches=2)
    batch = make_batch(run)
    dropped = minibatch_order(run.config.train.seed, 1, 0, 8)[:4]
    batch.sequences.response_mask[dropped] = False
    poisoned = replace(batch, advantages=torch.where(batch.advantages != 0, float("nan"), 0.0))
    with pytest.raises(NonFiniteUpdate, match="in optimizer step 2 of 2") as caught:
        update(run, poisoned)
    assert caught.value.num_optimizer_steps == 0


EXPERTS = {"model_type": "phimoe", "num_local_experts": 4, "num_experts_per_tok": 2}
PROPHETNET = {
    "model_type": "prophetnet",
    "hidden_size": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "decoder_start_token_id": EOS_ID,
}


@pytest.mark.parametrize(
    ("family", "config"), [("llama", EXPERTS), ("prophetnet", {})], ids=["in training mode", "with a cache"]
)
def test_a_policy_that_learns_as_another_than_it_samples_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, family: str, config: dict[str, Any]
) -> None:
    monkeypatch.setitem(ENCODER_DECODERS, "prophetnet", PROPHETNET)
    shutil.rmtree(folder / "policy")
    save_policy(folder / "policy", family, **config)
    before = parameters(run := make_run(folder))
    batch = make_batch(run)
    run.updater.model.train()
    with pytest.raises(GenerationMismatch, match=r"is a (Phimoe|ProphetNet)\w+, whose .* only rounding should"):
        update(run, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(run), strict=True))


def test_an_entropy_bonus_keeps_the_entropy_up(folder: Path) -> None:
    def entropy_after(name: str, coefficient: float) -> float:
        run = make_run(folder, name, entropy_coefficient=coefficient, num_epochs=8)
        batch = make_batch(run)
        flat = replace(batch, advantages=torch.zeros_like(batch.advantages), returns=torch.zeros_like(batch.returns))
        update(run, flat)
        return float(make_rollout_entropy(run))

    assert entropy_after("with", 0.5) > entropy_after("without", 0.0) + 0.01


def make_rollout_entropy(run: Run) -> torch.Tensor:
    from ppo_client.ppo.seeds import Purpose, uniforms

    rollout = run.worker.collect(run.prompts[:8], uniforms(0, Purpose.SAMPLING, 1, range(8), 6))
    return rollout.entropies[rollout.sequences.response_mask].mean()


def test_importance_weights_reach_the_loss(folder: Path) -> None:
    run = make_run(folder, num_epochs=1, num_minibatches=1)
    batch = make_batch(run)
    mask = batch.sequences.response_mask
    weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) * 2
    expected = -float((weights * batch.advantages)[mask].mean())
    assert expected != pytest.approx(-float(batch.advantages[mask].mean()), abs=1e-2)
    assert update(run, replace(batch, weights=weights)).first.policy_loss == pytest.approx(expected, rel=1e-4)


def test_a_dual_clip_reaches_the_loss(folder: Path) -> None:
    losses = []
    for name, dual_clip in (("without", None), ("with", 1.5)):
        run = make_run(folder, name, num_epochs=1, num_minibatches=1, dual_clip=dual_clip)
        batch = make_batch(run)
        mask = batch.sequences.response_mask
        # A policy that has moved to twice the probability of tokens that were all bad.
        moved = replace(batch, log_probs=batch.log_probs - math.log(2), advantages=-torch.ones_like(batch.advantages))
        assert bool(mask.any())
        losses.append(run.updater.update(moved, step=2).first.policy_loss)
    assert losses == pytest.approx([2.0, 1.5], rel=1e-4)


def test_the_value_loss_is_clipped_by_its_own_range(folder: Path) -> None:
    run = make_run(folder, num_epochs=1, num_minibatches=1, clip_range=0.2, value_clip_range=0.3)
    batch = make_batch(run)
    mask = batch.sequences.response_mask
    assert not bool(batch.values.any()), "a new critic says 0"
    far = replace(batch, values=(batch.values - 1) * mask)
    targets = batch.returns[mask]
    expected = 0.5 * torch.maximum(targets.square(), (-0.7 - targets).square()).mean()
    assert update(run, far).first.value_loss == pytest.approx(float(expected), rel=1e-5)


def test_the_value_loss_has_its_weight(folder: Path) -> None:
    norms = []
    for name, coefficient in (("one", 0.1), ("five", 0.5)):
        run = make_run(folder, name, num_epochs=1, num_minibatches=1, value_coefficient=coefficient)
        batch = make_batch(run)
        norms.append(update(run, replace(batch, advantages=torch.zeros_like(batch.advantages))).gradient_norm)
    assert norms[1] == pytest.approx(5 * norms[0], rel=1e-4)
    assert norms[0] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_computes_nearly_the_same_and_learns_in_fp32(made_once: Path, tmp_path: Path, kind: str) -> None:
    save_policy(tmp_path / "policy", KINDS[kind][0])
    shutil.copy(made_once / "prompts.jsonl", tmp_path)
    exact = start_run(make_config(tmp_path, train={"output": str(tmp_path / "fp32")}, **KINDS[kind][1]), FakeRewards())
    batch = make_batch(exact)
    ours = update(exact, batch).first
    AcceleratorState._reset_state(reset_partial_state=True)
    train = {"output": str(tmp_path / "bf16"), "mixed_precision": "bf16"}
    rounded = start_run(make_config(tmp_path, train=train, **KINDS[kind][1]), FakeRewards())
    theirs = update(rounded, batch).first
    assert theirs.policy_loss == pytest.approx(ours.policy_loss, abs=2e-2)
    assert theirs.value_loss == pytest.approx(ours.value_loss, rel=2e-2)
    assert theirs.policy_loss != ours.policy_loss, "it was computed in another precision"
    assert all(parameter.dtype is torch.float32 for parameter in parameters(rounded))


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_memory_and_nothing_else(
    made_once: Path, tmp_path: Path, kind: str, critic: str
) -> None:
    save_policy(tmp_path / "policy", KINDS[kind][0])
    shutil.copy(made_once / "prompts.jsonl", tmp_path)
    results = []
    for name, wanted in (("kept", False), ("again", True)):
        AcceleratorState._reset_state(reset_partial_state=True)
        sections = {"policy": {"gradient_checkpointing": wanted}, "train": {"output": str(tmp_path / name)}}
        run = start_run(make_config(tmp_path, critic={"kind": critic}, **sections, **KINDS[kind][1]), FakeRewards())
        batch = make_batch(run)
        num_forward = 0

        def count(*_: Any) -> None:
            nonlocal num_forward
            num_forward += 1

        models = [run.actor_critic.policy.model, *([run.actor_critic.critic.trunk] if critic == "separate" else [])]
        for model in models:
            attention = next(m for n, m in model.named_modules() if n.lower().endswith(("self_attn", "selfattention")))
            attention.register_forward_hook(count)
        run.updater.model.train()
        results.append((update(run, batch), parameters(run), num_forward / len(models)))
    (kept, weights, num_kept), (again, same_weights, num_again) = results
    assert num_again == 2 * num_kept
    assert again.first == pytest.approx(kept.first, abs=1e-6)
    assert again.mean == pytest.approx(kept.mean, rel=1e-3, abs=1e-5)
    assert again.gradient_norm == pytest.approx(kept.gradient_norm, rel=1e-4)
    assert all(torch.allclose(one, other, atol=2e-5) for one, other in zip(same_weights, weights, strict=True))
