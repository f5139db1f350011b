"""Which number stands for a run in a comparison: its outcome as a whole, else the mean of its last steps. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rm_server.scoring.comparison.experiment_evidence import Point, RunRecord


@dataclass(frozen=True, slots=True)
class Cut:
    """The mean of the last ``last_steps`` steps that were reported, up to ``until_step`` (None: all there are)."""

    last_steps: int = 1
    until_step: int | None = None

    def points(self, run: RunRecord, metric: str) -> list[Point]:
        """The outcomes that the run's value is the mean of, by step. An outcome at step 0 is of the run as a whole."""
        of_metric = sorted((point for point in run.points if point.metric == metric), key=lambda point: point.step)
        if of_metric and of_metric[0].step == 0 and self.until_step is None:
            return of_metric[:1]
        in_time = [
            point for point in of_metric if point.step and (self.until_step is None or point.step <= self.until_step)
        ]
        return in_time[-self.last_steps :]

    def last_step(self, run: RunRecord, metric: str) -> int:
        """The last of those steps; 0: the value is of the run as a whole, or there is none."""
        points = self.points(run, metric)
        return points[-1].step if points else 0


def value_of(run: RunRecord, metric: str, cut: Cut) -> float | None:
    """None: the run has no outcome of this metric there."""
    points = cut.points(run, metric)
    return sum(point.value for point in points) / len(points) if points else None
