"""Settings that decide what is learnt and may change on resume all the same: the log says from which step on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppo_client.ppo.config import PPOConfig

ADJUSTABLE = (
    "reward.truncation",
    "reward.empty_score",
    "reward.on_failed_item",
    "kl.coefficient",
    "ppo.learning_rate",
    "ppo.max_grad_norm",
)


@dataclass(frozen=True, slots=True)
class SettingChange:
    """The run went on with another value of one of ADJUSTABLE."""

    setting: str
    before: Any
    after: Any

    def to_event(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {"kind": "setting_changed", "text": str(self), "setting": self.setting}

    def __str__(self) -> str:
        return f"{self.setting} is now {self.after!r}, before {self.before!r}"


def adjustable_settings(config: PPOConfig) -> dict[str, Any]:
    """The values of ADJUSTABLE."""
    found = {}
    for setting in ADJUSTABLE:
        section, _, name = setting.partition(".")
        found[setting] = getattr(getattr(config, section), name)
    return found


def setting_changes(before: Mapping[str, Any], config: PPOConfig) -> list[SettingChange]:
    """In what `config` is not as `before`, which is what `adjustable_settings` gave once."""
    now = adjustable_settings(config)
    return [SettingChange(name, value, now[name]) for name, value in before.items() if now[name] != value]
