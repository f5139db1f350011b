"""Rows are shared in order, and no process waits for one that has left."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate import Accelerator

from ppo_client.ppo import distributed
from ppo_client.ppo.distributed import own_rows, raise_together
from ppo_client.ppo.errors import ConfigError, PPOError, RewardServiceAway


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
