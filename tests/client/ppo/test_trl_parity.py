"""The same tensors, the same numbers as trl 1.12's PPOTrainer: its own lines made `trl_reference/values.json`.

Equal within 1e-6: log-probabilities, KL (k1, k3), token rewards, whitening, GAE, returns, policy and value loss, both
clip fractions, entropy.

Different on purpose:
- trl puts the score on the place after a response's last token, where there is one, and so has a value, a return and a
  share of the value loss there, for a state in which nothing is decided. Here a response ends with its last token.
- trl's GAE goes on through the padding, and values of it would count. Here it is cut, whatever padding holds.
- trl divides logits by the temperature + 1e-7, here by the temperature.
- trl's `policy/approxkl_avg` is half the mean square of the log-ratio, padding included; here k3 over the tokens.
- trl's `policy/entropy_avg` is over padding, too; here over the tokens.
- trl shuffles minibatches by numpy's global generator, here by the run's seed; trl clips no gradient.
- trl lowers the learning rate after each batch of episodes, here it falls with each optimizer step.
- trl's value head starts at random and has no bias; here it starts at zero and has one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppo_client.ppo.advantages import gae, whiten
from ppo_client.ppo.kl import kl_per_token
from ppo_client.ppo.losses import policy_loss, value_loss
from ppo_client.ppo.models.distribution import SamplingRule
from ppo_client.ppo.models.token_log_probs import token_log_probs
from ppo_client.ppo.rewards import token_rewards

REFERENCE = json.loads((Path(__file__).parent / "trl_reference" / "values.json").read_text(encoding="utf-8"))
CASES: dict[str, dict[str, Any]] = REFERENCE["cases"]
FULL = {name: case for name, case in CASES.items() if name.startswith("full")}
PADDED = {name: case for name, case in CASES.items() if name.startswith("padded")}


class Case:
    """One of the reference's, as tensors; by name what was given, and what trl made of it."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.settings: dict[str, Any] = case["settings"]
        self.given = {name: torch.tensor(values) for name, values in case["inputs"].items()}
        self.trl = {name: torch.tensor(values) for name, values in case["trl"].items()}
        self.mask = torch.arange(self.given["responses"].shape[1]) < self.given["lengths"].unsqueeze(1)

    def kl(self) -> Tensor:
        given = self.given
        return kl_per_token(given["log_probs"], given["reference_log_probs"], self.settings["kl_estimator"])

    def rewards(self) -> Tensor:
        rewards = token_rewards(self.given["scores"], self.kl(), self.mask, self.settings["kl_coef"])
        return whiten(rewards, self.mask, keep_mean=True) if self.settings["whiten_rewards"] else rewards


def each(cases: dict[str, dict[str, Any]]) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("case", [Case(case) for case in cases.values()], ids=list(cases))


def assert_same(ours: Tensor, theirs: Tensor, mask: Tensor | None = None) -> None:
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs() if mask is None else (ours - theirs).abs()[mask]
    assert float(difference.max()) <= 1e-6


def test_the_reference_is_of_the_release_that_is_named() -> None:
    assert REFERENCE["trl"] == "1.12.0"
    assert len(FULL) == len(PADDED) == 2


@each(CASES)
def test_log_probs_and_entropy(case: Case) -> None:
    rule = SamplingRule(case.settings["temperature"])
    found = token_log_probs(case.given["raw_logits"], case.given["responses"], rule, with_entropy=True)
    assert_same(found.log_probs, case.trl["new_logprobs"], case.mask)
    assert found.entropies is not None
    assert_same(found.entropies, case.trl["entropy"])


@each(CASES)
def test_kl(case: Case) -> None:
    assert_same(torch.where(case.mask, case.kl(), 0.0), case.trl["kl"])


@each(FULL)
def test_rewards_and_their_whitening(case: Case) -> None:
    assert_same(case.rewards(), case.trl["rewards"])


@each(FULL)
def test_gae_and_whitened_advantages(case: Case) -> None:
    settings = case.settings
    advantages, returns = gae(
        case.rewards(), case.given["values"], case.mask, gamma=settings["gamma"], gae_lambda=settings["lam"]
    )
    assert_same(advantages, case.trl["plain_advantages"])
    assert_same(returns, case.trl["returns"])
    assert_same(whiten(advantages, case.mask, keep_mean=False), case.trl["advantages"])


@each(CASES)
def test_policy_loss(case: Case) -> None:
    rule = SamplingRule(case.settings["temperature"])
    log_probs = token_log_probs(case.given["raw_logits"], case.given["responses"], rule).log_probs
    loss = policy_loss(
        log_probs, case.given["log_probs"], case.trl["advantages"], case.mask, case.settings["cliprange"]
    )
    num_tokens = case.mask.sum()
    assert_same(loss.loss / num_tokens, case.trl["pg_loss"])
    assert_same(loss.num_clipped / num_tokens, case.trl["pg_clipfrac"])
    assert float(case.trl["pg_clipfrac"]) > 0


@each(CASES)
def test_value_loss(case: Case) -> None:
    """Over the states that trl counts: one more a response, where there is padding."""
    lengths = case.given["lengths"] + 1
    counted = torch.arange(case.mask.shape[1]) < lengths.unsqueeze(1)
    loss = value_loss(
        case.given["new_values"],
        torch.where(counted, case.given["values"], 0.0),
        case.trl["returns"],
        counted,
        case.settings["cliprange_value"],
    )
    assert_same(loss.loss / counted.sum(), case.trl["vf_loss"])
    assert_same(loss.num_clipped / counted.sum(), case.trl["vf_clipfrac"])
    assert float(case.trl["vf_clipfrac"]) > 0


def test_the_score_stands_one_place_earlier_than_trl_s() -> None:
    case = Case(PADDED["padded, k1"])
    ours, theirs, scores = case.rewards(), case.trl["rewards"], case.given["scores"]
    for row, length in enumerate(case.given["lengths"].tolist()):
        moved = theirs[row].clone()
        moved[min(length, len(moved) - 1)] -= scores[row]
        moved[length - 1] += scores[row]
        assert_same(ours[row], moved)
    assert_same(ours.sum(1), theirs.sum(1))
    assert float((ours - theirs).abs().max()) > 0.1
