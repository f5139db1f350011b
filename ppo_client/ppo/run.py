"""What one process holds during a run, and how that is saved: checkpoints, the best one, the policy at the end."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from ppo_client.ppo import checkpoint as disk
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.evaluation import Evaluator
from ppo_client.ppo.models.build import load_language_model
from ppo_client.ppo.models.critic import ActorCritic
from ppo_client.ppo.models.run_models import save_policy
from ppo_client.ppo.prompts import Prompt
from ppo_client.ppo.rollout import RolloutWorker, Started
from ppo_client.ppo.scores.registration import Registration
from ppo_client.ppo.sharding import is_sharded, optimizer_state
from ppo_client.ppo.staleness import to_tensors
from ppo_client.ppo.tracking import Tracker
from ppo_client.ppo.update import Updater

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ppo_client import RewardClient


@dataclass(slots=True)
class Run:
    """Everything one process holds during a run."""

    config: PPOConfig
    accelerator: Accelerator
    actor_critic: ActorCritic
    tokenizer: Any | None
    prompts: list[Prompt]
    worker: RolloutWorker
    updater: Updater
    tracker: Tracker
    client: RewardClient | None
    """Made by the run, which closes it"""
    state: RunState
    evaluator: Evaluator | None
    registration: Registration | None
    """None: scores come from a source that the caller brought"""
    started: Started | None = None
    """With `rollout.max_staleness`: the next step's responses"""
    restored: list[dict[str, Any]] = field(default_factory=list)
    """Or, after a resume, what was written of them before"""
    has_reported_gap: bool = False
    """How far the engine that writes is from the policy"""
    marks: list[dict[str, Any]] = field(default_factory=list)
    """What each process has to save, as of the last `mark`"""
    is_stopped: bool = False
    """Ended before it was done, for this process or another was told to"""

    @property
    def output(self) -> Path:
        return Path(self.config.train.output)

    @property
    def is_saved(self) -> bool:
        return disk.checkpoint_path(self.output, self.state.step).exists()

    def mark(self) -> None:
        """Collects from all processes what a checkpoint of this moment holds of them."""
        chunks = to_tensors([samples for samples, _ in self.started.chunks]) if self.started else self.restored
        self.marks = gather_object([{"random": disk.random_state(), "started": chunks}])

    def save(self, *, num_older: int | None = None) -> None:
        """Writes a checkpoint of the present state, instead of the one of this step that may be there.

        `num_older`: how many others are kept; as `train.keep_checkpoints` says where it is absent.
        """
        self.mark()
        optimizer = optimizer_state(self.updater.model, self.updater.optimizer)
        if self.accelerator.is_main_process:
            self._save(optimizer, num_older)
        self.accelerator.wait_for_everyone()

    def save_as_marked(self) -> None:
        """As `save`, while the other processes do something else. Nothing may have been learnt since `mark`.

        With FSDP and DeepSpeed it does nothing: the others' shares of the optimizer's state are out of reach until they
        join in.
        """
        model, optimizer = self.updater.model, self.updater.optimizer
        if self.accelerator.is_main_process and not self.is_saved and not is_sharded(model):
            self._save(optimizer_state(model, optimizer))

    def save_best(self) -> None:
        """Keeps the present state as OUTPUT/best."""
        self.mark()
        optimizer = optimizer_state(self.updater.model, self.updater.optimizer)
        if self.accelerator.is_main_process:
            disk.write_directory(self.output / "best", partial(self._write, optimizer))
        self.accelerator.wait_for_everyone()

    def export_policy(self) -> None:
        """Puts the policy of the last checkpoint where people look for it."""
        if self.accelerator.is_main_process:
            saved = disk.checkpoint_path(self.output, self.state.step) / "policy"
            disk.write_directory(self.output / "policy", partial(_copy_directory, saved))
            if self.config.lora.merge:
                disk.write_directory(self.output / "policy-merged", self._write_merged)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Closes the logs, and the client where the run made one."""
        if self.started is not None:
            self.started.cancel()
        if self.registration is not None:
            self.registration.close()
        self.tracker.close()
        if self.client is not None:
            self.client.close()

    def _write_merged(self, place: Path) -> None:
        load_language_model(str(self.output / "policy"), self.config.policy.dtype).save_pretrained(place)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(place)

    def _save(self, optimizer: dict[str, Any], num_older: int | None = None) -> None:
        write = partial(self._write, optimizer)
        keep = self.config.train.keep_checkpoints if num_older is None else num_older + 1
        disk.save_checkpoint(self.output, self.state.step, write, keep)

    def _write(self, optimizer: dict[str, Any], place: Path) -> None:
        policy = place / "policy"
        save_policy(self.actor_critic, policy)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(policy)
        torch.save(optimizer, place / "optimizer.pt")
        torch.save(self.marks, place / "processes.pt")
        (place / "state.json").write_text(self.state.to_json(), encoding="utf-8")


def _copy_directory(source: Path, place: Path) -> None:
    shutil.copytree(source, place, dirs_exist_ok=True)
