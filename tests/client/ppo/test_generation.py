"""Responses by vLLM, as a stand-in for it behaves: it has the policy's weights, is checked, corrected, or refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from client.ppo.fake_vllm import FakeVLLM
from tiny_policies import FakeRewards, make_config, make_language_model, read_jsonl, save_policy, without_times

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.config import LoRAConfig
from ppo_client.ppo.errors import ConfigError, GenerationMismatch
from ppo_client.ppo.models.lora import add_adapter, plain_weights
from ppo_client.ppo.run import Run
from ppo_client.ppo.seeds import Purpose, uniforms
from ppo_client.ppo.start import start_run
from ppo_client.ppo.update import Batch


def fake(monkeypatch: pytest.MonkeyPatch, **behaviour: Any) -> FakeVLLM:
    module = FakeVLLM(**behaviour)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # restored after the test
    return module


def config_of(folder: Path, **sections: dict[str, Any]) -> Any:
    rollout = {"generator": "vllm", "temperature": 0.8, "min_response_tokens": 2, **sections.pop("rollout", {})}
    return make_config(folder, rollout=rollout, **sections)


@pytest.mark.parametrize("sections", [{}, {"lora": {"rank": 2}}, {"critic": {"kind": "separate"}}], ids=str)
def test_an_engine_that_agrees_has_the_weights_of_each_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    # What it starts with is something else, so that only weights that were sent can agree.
    module = fake(monkeypatch, noise=0.1)
    train = {"num_steps": 3}
    PPOTrainer(config_of(folder, rollout={"vllm_max_gap": 1e-4}, train=train, **sections), FakeRewards()).train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [row["staleness"] for row in rows] == [0, 0, 0]
    assert abs(rows[-1]["kl"]) > 1e-3, "it has learnt something"
    for row in rows:
        assert row["sampled_mean_abs_log_ratio"] < 1e-5
        assert row["importance_weight_mean"] == pytest.approx(1.0, abs=1e-5)
        assert row["entropy"] > 0
    assert module.num_resets == 3
    assert len(set(module.seeds)) == 3 * 8, "one for each row of each step"
    assert module.settings["logprobs_mode"] == "processed_logprobs"
    assert module.settings["max_model_len"] == 8 + 6


def test_the_same_seed_gives_the_same_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    found = []
    for name in ("a", "b"):
        PPOTrainer(config_of(folder, train={"output": str(folder / name), "run": "same"}), FakeRewards()).train()
        found.append(without_times(read_jsonl(folder / name / "metrics.jsonl")))
    assert found[0] == found[1]


def test_an_engine_that_differs_is_corrected(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, temperature_factor=1.1)
    trainer = PPOTrainer(config_of(folder, rollout={"vllm_max_gap": 1.0, "max_importance_weight": 1.5}), FakeRewards())
    batches: list[Batch] = []
    updater = type(trainer.run.updater)
    update = updater.update
    monkeypatch.setattr(
        updater, "update", lambda self, batch, step: (batches.append(batch), update(self, batch, step))[1]
    )
    trainer.train_step()
    row = read_jsonl(folder / "run" / "metrics.jsonl")[0]
    assert 1e-3 < row["sampled_mean_abs_log_ratio"] < 1.0
    assert row["first_ratio"] == pytest.approx(1.0, abs=1e-5), "the ratio is from the policy, not from the engine"
    weights, mask = batches[0].weights, batches[0].sequences.response_mask
    assert weights is not None
    assert float(weights.max()) <= 1.5
    assert float((weights[mask] - 1).abs().mean()) > 1e-3
    assert "differ from the policy's by" in capsys.readouterr().err


def test_the_log_probabilities_are_the_policys_and_what_sampled_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, temperature_factor=1.1)
    run: Run = start_run(config_of(folder), FakeRewards())
    rollout = run.worker.collect(run.prompts[:8], uniforms(0, Purpose.SAMPLING, 1, range(8), 6))
    mask = rollout.sequences.response_mask
    with torch.no_grad():
        ours = run.actor_critic(rollout.sequences, with_entropy=True)
        run.actor_critic.policy.rule = type(run.actor_critic.policy.rule)(
            0.8 * 1.1, run.actor_critic.policy.rule.eos_ids, 2
        )
        theirs = run.actor_critic(rollout.sequences)
    assert rollout.sampled_log_probs is not None
    assert torch.allclose(rollout.log_probs[mask], ours.log_probs[mask], atol=1e-5)
    assert torch.allclose(rollout.sampled_log_probs[mask], theirs.log_probs[mask], atol=1e-5)
    assert torch.allclose(rollout.entropies[mask], ours.entropies[mask], atol=1e-5)
    assert torch.allclose(rollout.values[mask], ours.values[mask], atol=1e-5)
    last = rollout.sequences.response_ids.gather(1, (mask.sum(1) - 1).unsqueeze(1)).squeeze(1)
    assert torch.equal(rollout.has_eos, torch.isin(last, torch.tensor(run.actor_critic.policy.rule.eos_ids)))


@pytest.mark.parametrize("behaviour", [{"temperature_factor": 4.0}, {"noise": 0.3, "takes_weights": False}], ids=str)
def test_an_engine_that_is_wildly_off_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, behaviour: dict[str, Any]
) -> None:
    fake(monkeypatch, **behaviour)
    with pytest.raises(GenerationMismatch, match=r"nats per token .*vllm_max_gap allows 0\.1"):
        PPOTrainer(config_of(folder), FakeRewards()).train()


def test_an_engine_that_stops_taking_weights_is_refused_when_the_policy_has_learnt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, takes_weights=False)
    ppo = {"learning_rate": 3e-2}
    with pytest.raises(GenerationMismatch):
        PPOTrainer(config_of(folder, ppo=ppo), FakeRewards()).train()
    assert len(read_jsonl(folder / "run" / "metrics.jsonl")) == 1


def test_without_vllm_the_message_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with pytest.raises(ConfigError, match=r'needs vLLM, and it cannot be imported.*rollout.generator = "own"'):
        start_run(config_of(folder), FakeRewards())


def test_what_vllm_cannot_do_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    for setting in ({"max_staleness": 1}, {"log_probs": "sampling"}):
        with pytest.raises(ConfigError, match=r"needs rollout\.max_staleness = 0"):
            config_of(folder, rollout=setting)
    save_policy(folder / "t5", "t5")
    with pytest.raises(ConfigError, match="decoder-only"):
        start_run(config_of(folder, policy={"model": str(folder / "t5")}), FakeRewards())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_weights_of_an_adapter_are_added(family: str) -> None:
    plain = make_language_model(family)
    expected = {name: tensor.clone() for name, tensor in plain.named_parameters()}
    adapted = make_language_model(family)
    add_adapter(adapted, LoRAConfig(rank=2), seed=0)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plain_weights(adapted))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, tensor in plain_weights(adapted):
            expected.pop(name)
            plain.get_parameter(name).copy_(tensor)
    assert not expected, "every weight is there, once"
    ids = torch.arange(5, 12).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(plain.eval()(ids).logits, adapted.eval()(ids).logits, atol=1e-5)
