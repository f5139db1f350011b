"""What training shows while it runs: one bar with loss and accuracy."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class ProgressBar(TrainerCallback):
    """A progress bar over the steps, with the last logged figures; a resumed run begins where it was."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the bar."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.title, unit="step", dynamic_ncols=True
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Shows the figures."""
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix({name: f"{logs[name]:.3f}" for name in ("loss", "accuracy") if name in logs})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
