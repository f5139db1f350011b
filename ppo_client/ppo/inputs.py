"""What a run reads from disk beside its checkpoint: where that lies, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.errors import CheckpointError


def with_absolute_paths(config: PPOConfig) -> PPOConfig:
    """The same places, wherever one stands. What is no path here (a model's name on a hub) stays as it is."""

    def absolute(place: str) -> str:
        return str(Path(place).absolute()) if place and Path(place).exists() else place

    policy = config.policy
    return replace(
        config,
        policy=replace(
            policy,
            model=absolute(policy.model),
            tokenizer=absolute(policy.tokenizer),
            reference=absolute(policy.reference),
        ),
        critic=replace(config.critic, model=absolute(config.critic.model), init=absolute(config.critic.init)),
        data=replace(config.data, prompts=absolute(config.data.prompts)),
        evaluation=replace(config.evaluation, prompts=absolute(config.evaluation.prompts)),
        train=replace(config.train, output=str(Path(config.train.output).absolute())),
    )


def check_unchanged(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises CheckpointError, which names what is no longer what the run began with."""
    if changed := [name for name, digest in before.items() if now[name] != digest]:
        raise CheckpointError(
            f"what {' and '.join(changed)} names is not what it was when the run began (SHA-256), so this would be "
            "another run: put back what was there, or start anew with policy.model set to a checkpoint's policy"
        )
