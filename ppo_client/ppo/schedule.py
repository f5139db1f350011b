"""The learning rate as a pure function of how far the run is; nothing to save, nothing to get out of step."""

from __future__ import annotations

import math

from ppo_client.ppo.config import UpdateConfig


def learning_rate(config: UpdateConfig, step: float, num_steps: int) -> float:
    """At `step` PPO steps (from 0, with fractions) of `num_steps`: linear warm-up, then the schedule down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
    progress = min(max(progress, 0.0), 1.0)
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate
