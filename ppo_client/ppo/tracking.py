"""What a run tells the world: JSON Lines of its steps, samples and evaluations, boards, and the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ppo_client.ppo.boards import Board

# Characters that `str.splitlines` takes for line ends, and JSON does not.
_ESCAPED = {ord(separator): f"\\u{ord(separator):04x}" for separator in "\x85\u2028\u2029"}


class JsonLines:
    """A file of one JSON object per line. It is open only while a line is written, so nobody has to close it."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Goes on after the rows of step `last_step`; later ones, and a line cut short, are removed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _keep_until(path, last_step)
        else:
            path.touch()
        self._path = path

    def write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).translate(_ESCAPED) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)


class Tracker:
    """Writes for the main process of a run; the others make it with `enabled=False` and it is silent."""

    def __init__(
        self,
        output: Path,
        *,
        last_step: int,
        num_steps: int,
        last_evaluation: int = 0,
        boards: Sequence[Board] = (),
        enabled: bool = True,
    ) -> None:
        self._enabled = enabled
        self._num_steps = num_steps
        self._boards = boards
        if not enabled:
            return
        self._metrics = JsonLines(output / "metrics.jsonl", last_step)
        self._samples = JsonLines(output / "samples.jsonl", last_step)
        self._evaluations = JsonLines(output / "evaluations.jsonl", last_evaluation)
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=num_steps, initial=last_step, unit="step", disable=not is_terminal, dynamic_ncols=True)

    def step(self, row: Mapping[str, Any]) -> None:
        """One row per step; numbers go to the boards, too, and the most telling to the terminal."""
        if not self._enabled:
            return
        self._metrics.write(row)
        numbers = _numbers(row)
        for board in self._boards:
            board.numbers(row["step"], numbers)
            for event in row.get("events", ()):
                board.event(row["step"], event["text"])
        telling = f"score {row['score_mean']:.3f} kl {row['kl']:.2f} entropy {row['entropy']:.2f}"
        self._bar.set_postfix_str(telling, refresh=False)
        self._bar.update()
        if self._bar.disable:
            print(f"step {row['step']}/{self._num_steps} {telling} {row['step_s']:.1f} s", file=sys.stderr, flush=True)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """One row per evaluation: step, EvaluationFacts, conditions, texts."""
        if not self._enabled:
            return
        self._evaluations.write(row)
        numbers = {f"evaluation/{name}": value for name, value in _numbers(row).items()}
        for board in self._boards:
            board.numbers(row["step"], numbers)
        self.say(
            f"evaluation after step {row['step']}: score {row['score_mean']:.3f} (reference "
            f"{row['reference_score_mean']:.3f}), win rate {row['win_rate']:.2f} by {', '.join(row['judges'])}, "
            f"kl {row['kl']:.2f}"
        )

    def samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        if self._enabled:
            for row in rows:
                self._samples.write(row)

    def say(self, text: str) -> None:
        """A line for the person at the terminal."""
        if self._enabled:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._enabled:
            self._bar.close()
            for board in self._boards:
                board.close()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}


def _keep_until(path: Path, last_step: int) -> None:
    kept = []
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.endswith("\n") and json.loads(line)["step"] <= last_step:
                kept.append(line)
    beside = path.with_name(f".{path.name}")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, path)
