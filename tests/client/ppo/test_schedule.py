"""The learning rate at telling moments."""

from __future__ import annotations

import pytest

from ppo_client.ppo.config import UpdateConfig
from ppo_client.ppo.schedule import learning_rate


@pytest.mark.parametrize(
    ("schedule", "warmup", "step", "share"),
    [
        ("constant", 0, 0, 1.0),
        ("constant", 0, 99, 1.0),
        ("linear", 0, 0, 1.0),
        ("linear", 0, 50, 0.5),
        ("linear", 0, 100, 0.0),
        ("linear", 20, 10, 0.5),
        ("linear", 20, 60, 0.5),
        ("cosine", 0, 0, 1.0),
        ("cosine", 0, 50, 0.5),
        ("cosine", 0, 100, 0.0),
        ("linear", 0, 120, 0.0),
    ],
)
def test_moments(schedule: str, warmup: int, step: float, share: float) -> None:
    config = UpdateConfig(learning_rate=2e-3, schedule=schedule, warmup_steps=warmup)  # type: ignore[arg-type]
    assert learning_rate(config, step, 100) == pytest.approx(2e-3 * share, abs=1e-9)
