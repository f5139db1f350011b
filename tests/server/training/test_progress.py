"""What the terminal shows while training runs."""

from __future__ import annotations

import contextlib

import pytest
from transformers import TrainerControl, TrainerState
from transformers.utils import logging as transformers_logging

from rm_server.training.progress import ProgressBar, quiet_transformers


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


@pytest.mark.parametrize("shows_bars", [True, False])
def test_transformers_is_quiet_meanwhile_and_as_before_after(shows_bars: bool) -> None:
    verbosity, before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    set_bars = {True: transformers_logging.enable_progress_bar, False: transformers_logging.disable_progress_bar}
    set_bars[shows_bars]()
    try:
        with contextlib.suppress(KeyError), quiet_transformers():
            assert transformers_logging.get_verbosity() == transformers_logging.ERROR
            assert not transformers_logging.is_progress_bar_enabled()
            raise KeyError
        assert transformers_logging.is_progress_bar_enabled() == shows_bars
        assert transformers_logging.get_verbosity() == verbosity
    finally:
        set_bars[before]()
