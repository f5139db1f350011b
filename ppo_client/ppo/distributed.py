"""What the processes of one run tell each other. With one process everything stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from ppo_client.ppo.errors import ConfigError, PPOError
from ppo_client.ppo.models.sequences import Prompts, Sequences

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ppo_client.ppo.rollout import Rollout


def own_rows(num_rows: int, rank: int, num_processes: int) -> range:
    """Which rows of a batch a process makes; in order of rank they are the whole batch."""
    if num_rows % num_processes:
        raise ConfigError(f"{num_rows} episodes cannot be shared by {num_processes} processes; make it a multiple")
    size = num_rows // num_processes
    return range(rank * size, (rank + 1) * size)


def gather_rollout(accelerator: Accelerator, rollout: Rollout, pad_id: int) -> Rollout:
    """The rows of all processes, in order of rank: afterwards each process holds the whole step.

    That is a few integers and floats per token. In return every statistic is global, minibatches are the same
    whatever the number of processes, and no formula needs to know of processes.
    """
    if accelerator.num_processes == 1:
        return rollout
    prompts = rollout.sequences.prompts

    def widened(values: Any, fill: int) -> Any:
        return accelerator.pad_across_processes(values, dim=1, pad_index=fill, pad_first=True)

    sequences = Sequences(
        Prompts(
            accelerator.gather(widened(prompts.ids, pad_id)), accelerator.gather(widened(prompts.mask.int(), 0)).bool()
        ),
        accelerator.gather(rollout.sequences.response_ids),
        accelerator.gather(rollout.sequences.response_mask),
    )
    others = {
        item.name: accelerator.gather(getattr(rollout, item.name))
        for item in fields(rollout)
        if item.name not in ("sequences", "records", "is_stale", "seconds") and getattr(rollout, item.name) is not None
    }
    return replace(
        rollout, sequences=sequences, records=gather_object(rollout.records), seconds=rollout.seconds, **others
    )


def raise_together(accelerator: Accelerator, error: Exception | None) -> None:
    """Raises in every process if there is an error in any, so that none waits for one that has left.

    Where the error is, it is raised as it is; elsewhere as the PPOError it is, or else as a plain PPOError.
    """
    told = None if error is None else (type(error) if isinstance(error, PPOError) else PPOError, _in_words(error))
    errors: Sequence[tuple[type[PPOError], str] | None] = gather_object([told])
    if error is not None:
        raise error
    for rank, other in enumerate(errors):
        if other is not None:
            kind, text = other
            raise kind(f"process {rank}: {text}")


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, PPOError) else f"{type(error).__name__}: {error}"


def is_true_anywhere(flag: bool) -> bool:
    """The same answer in every process."""
    return any(gather_object([flag]))
