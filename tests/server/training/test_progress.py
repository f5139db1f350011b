"""What the terminal shows while training runs."""

from __future__ import annotations

import pytest
from transformers import TrainerControl, TrainerState

from rm_server.training.progress import ProgressBar


def test_the_bar_begins_where_the_run_does_and_shows_the_last_figures(capsys: pytest.CaptureFixture[str]) -> None:
    bar, state, control = ProgressBar("train"), TrainerState(max_steps=10, global_step=7), TrainerControl()
    bar.on_train_begin(None, state, control)
    for state.global_step in (8, 9, 10):
        bar.on_step_end(None, state, control)
        bar.on_log(None, state, control, logs={"loss": 0.25, "accuracy": 0.875, "learning_rate": 0.1})
    bar.on_log(None, state, control, logs={"train_runtime": 3.0})
    bar.on_train_end(None, state, control)
    shown = capsys.readouterr().err.split("\r")
    assert "7/10" in shown[1]
    assert "10/10" in shown[-1]
    assert "loss=0.250, accuracy=0.875" in shown[-1]


def test_only_the_main_process_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    bar, state, control = ProgressBar("train"), TrainerState(max_steps=1, is_world_process_zero=False), TrainerControl()
    bar.on_train_begin(None, state, control)
    bar.on_step_end(None, state, control)
    bar.on_log(None, state, control, logs={"loss": 0.25})
    bar.on_train_end(None, state, control)
    assert capsys.readouterr().err == ""
