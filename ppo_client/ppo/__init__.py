"""PPO with rewards from a service: `from ppo_client.ppo import PPOConfig, PPOTrainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo_client.ppo.config import PPOConfig
    from ppo_client.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: it waits until the trainer is wanted.
    if name == "PPOTrainer":
        from ppo_client.ppo.trainer import PPOTrainer

        return PPOTrainer
    if name == "PPOConfig":
        from ppo_client.ppo.config import PPOConfig

        return PPOConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
