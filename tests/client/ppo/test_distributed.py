"""Rows are shared in order, and no process waits for one that has left."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from accelerate import Accelerator
from tiny_policies import FakeRewards, make_config

from ppo_client.ppo import distributed
from ppo_client.ppo.assembly import assemble
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.distributed import own_rows, raise_together
from ppo_client.ppo.errors import ConfigError, PPOError, RewardServiceAway
from ppo_client.ppo.scores.normalize import ScoreNormalizer


def test_rows_are_shared_in_order() -> None:
    assert [*own_rows(8, 0, 2), *own_rows(8, 1, 2)] == list(range(8))
    with pytest.raises(ConfigError, match="9 episodes cannot be shared by 2 processes"):
        own_rows(9, 0, 2)


@pytest.mark.parametrize(
    ("there", "kind", "message"),
    [
        (RewardServiceAway("gone"), RewardServiceAway, "process 1: gone"),
        # Its class cannot be made of a text alone.
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), PPOError, "process 1: UnicodeDecodeError: 'utf-8'"),
    ],
)
def test_an_error_is_told_to_all_processes(
    monkeypatch: pytest.MonkeyPatch, there: Exception, kind: type[Exception], message: str
) -> None:
    told: list[Any] = []

    def gather(own: list[Any]) -> list[Any]:
        told.extend(own)
        return own

    monkeypatch.setattr(distributed, "gather_object", gather)
    with pytest.raises(type(there)) as caught:
        raise_together(Accelerator(), there)
    assert caught.value is there
    monkeypatch.setattr(distributed, "gather_object", lambda own: [*own, *told])
    with pytest.raises(kind, match=message) as elsewhere:
        raise_together(Accelerator(), None)
    assert type(elsewhere.value) is kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ppo": {"batch_size": 6}}, r"ppo\.batch_size \(6\) is not a multiple of ppo\.num_minibatches"),
        ({"reward": {"normalize_samples": 17}}, r"reward\.normalize_samples \(17\) is not a multiple of the number"),
    ],
)
def test_what_two_processes_cannot_share_is_refused_by_its_setting(
    folder: Path, settings: dict[str, dict[str, Any]], message: str
) -> None:
    config, two = make_config(folder, **settings), cast(Accelerator, SimpleNamespace(num_processes=2))
    state = RunState("run", 0, 0, config.kl.coefficient, ScoreNormalizer())
    with pytest.raises(ConfigError, match=message):
        assemble(config, two, FakeRewards(), state)
