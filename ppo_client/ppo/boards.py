"""Where a run's numbers go beside its JSON Lines: TensorBoard if it can be imported, Weights & Biases if wanted."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.config_file import to_mapping
from ppo_client.ppo.errors import ConfigError


class Board(Protocol):
    """Takes numbers by step."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...

    def event(self, step: int, text: str) -> None: ...

    def close(self) -> None: ...


def make_boards(config: PPOConfig, run: str, last_step: int) -> list[Board]:
    """What `train.tracking` names. Raises ConfigError where wandb is asked for and is not installed."""
    output, boards = Path(config.train.output), list[Board]()
    if "tensorboard" in config.train.tracking and (writer := summary_writer(output / "tensorboard", last_step)):
        boards.append(TensorBoard(writer))
    if "wandb" in config.train.tracking:
        boards.append(Wandb(config, run, output))
    return boards


class TensorBoard:
    """Into files beside the run's."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def event(self, step: int, text: str) -> None:
        self._writer.add_text("events", text, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of the same id, so that a resumed run goes on there. Where it goes, wandb's own environment says."""

    def __init__(self, config: PPOConfig, run: str, output: Path) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                'train.tracking names "wandb", and it is not installed: pip install wandb, or remove it there'
            ) from error
        self._alert_level = wandb.AlertLevel.WARN
        self._run = wandb.init(
            project=config.train.wandb_project,
            id="".join(c if c.isalnum() or c in "._-" else "-" for c in run),
            name=run,
            dir=str(output),
            config=to_mapping(config),
            resume="allow",
        )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        # Not wandb's own step: that may only grow, and a resumed run logs its last steps again.
        self._run.log({**values, "ppo_step": step})

    def event(self, step: int, text: str) -> None:
        self._run.alert(title=f"step {step}", text=text, level=self._alert_level)

    def close(self) -> None:
        self._run.finish()


def summary_writer(directory: Path, last_step: int) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=last_step + 1)
