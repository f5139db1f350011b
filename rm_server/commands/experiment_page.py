"""An experiment's report as a page that stands alone: verdicts, plots of each metric, runs by arm, warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from rm_server.commands.common import Row
from rm_server.commands.experiment_text import (
    ONE_VALUE,
    PEEKING,
    count,
    details,
    direction,
    number,
    signed,
    value_rule,
)
from rm_server.commands.page import Plot, drawing, rendered
from rm_server.scoring.comparison.experiment_evidence import Evidence, Point, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colors: TypeAlias = Mapping[str, str]

_PALETTE = ("#566071", "#2f5aa8", "#d1673a", "#1b7f79", "#8c4fa3", "#b7791f", "#b3372f", "#3f8fb5")
"""The baseline's first."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One metric of a report, with what its plots need."""

    metric: Row
    baseline: str
    colors: Colors
    runs: Mapping[str, RunRecord]

    def arms(self) -> list[str]:
        return [arm["arm"] for arm in self.metric["arms"]]

    def points(self, run: str) -> list[Point]:
        """Of this metric, by step; without what is of the run as a whole."""
        of_run = [p for p in self.runs[run].points if p.metric == self.metric["metric"] and p.step]
        return sorted(of_run, key=lambda point: point.step)


def page(report: Row) -> str:
    """HTML with everything inside: no script, nothing fetched. Raises CommandError without the extra `train`."""
    with drawing():
        colors = {arm["arm"]: _PALETTE[index % len(_PALETTE)] for index, arm in enumerate(report["arms"])}
        runs = {run.run: run for run in Evidence.from_json(report["evidence"]).runs}
        plots = {
            metric["metric"]: _plots(_Drawn(metric, report["baseline"], colors, runs)) for metric in report["metrics"]
        }
        registered = _registered(runs, colors, report)
    values = {
        "report": report,
        "colors": colors,
        "plots": plots,
        "registered": registered,
        "details": details,
        "direction": direction,
        "count": count,
        "notes": (value_rule(report), ONE_VALUE, PEEKING),
    }
    return rendered("experiment.html.jinja", values, {"number": number, "signed": signed})


def _plots(drawn: _Drawn) -> list[Plot]:
    plots = []
    if drawn.metric["comparisons"]:
        plots.append(_forest(drawn))
    plots.append(_dots(drawn))
    if any(len(drawn.points(run)) > 1 for values in drawn.metric["values"].values() for run in values):
        plots.append(_curves(drawn))
    return plots


def _forest(drawn: _Drawn) -> Plot:
    from rm_server.training.figures import INK, NEUTRAL, draw

    comparisons = drawn.metric["comparisons"]

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=NEUTRAL, linestyle="--", linewidth=1)
        for position, row in enumerate(comparisons):
            color = drawn.colors[row["arm"]]
            for name, width, alpha in (("anytime_interval", 2, 0.3), ("interval", 5, 0.45)):
                if name in row:
                    axes.plot(row[name], [position] * 2, color=color, linewidth=width, alpha=alpha)
            axes.plot(row["difference"], position, "o", color=color, markersize=8)
            axes.annotate(
                f"{signed(row['difference'])}  {row['verdict']}",
                (row["difference"], position),
                (0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        axes.set_yticks(range(len(comparisons)), [row["arm"] for row in comparisons])
        axes.set(ylim=(len(comparisons) - 0.5, -0.65), xlabel=f"difference to {drawn.baseline}")
        axes.margins(x=0.15)
        axes.grid(visible=False, axis="y")

    caption = (
        f"Each arm minus {drawn.baseline}; {direction(drawn.metric)}. Thick: 95 % for one look. "
        "Thin: 95 % however often one looks."
    )
    return Plot("Against the baseline", draw(5.6, 1.4 + 0.6 * len(comparisons), paint), caption)


def _dots(drawn: _Drawn) -> Plot:
    from rm_server.training.figures import INK, draw

    def paint(axes: Axes) -> None:
        for position, arm in enumerate(drawn.metric["arms"]):
            values = sorted(drawn.metric["values"][arm["arm"]].values())
            # Side by side rather than at random: the same report is the same picture.
            offsets = [((index * 7) % 11 - 5) * 0.03 for index in range(len(values))]
            x = [position - 0.1 + offset for offset in offsets]
            axes.scatter(x, values, s=26, color=drawn.colors[arm["arm"]], alpha=0.6, linewidths=0)
            axes.plot(position + 0.22, arm["mean"], "D", color=INK, markersize=5)
            if "interval" in arm:
                axes.plot([position + 0.22] * 2, arm["interval"], color=INK, linewidth=1.6)
        labels = [f"{arm['arm']}\n{count(arm['num_runs'], 'run')}" for arm in drawn.metric["arms"]]
        axes.set_xticks(range(len(labels)), labels)
        axes.set(xlim=(-0.6, len(labels) - 0.4), ylabel=drawn.metric["metric"])
        axes.grid(visible=False, axis="x")

    return Plot("By arm", draw(5.6, 3.5, paint), "A dot is a run. Beside them: the mean with its 95 % interval.")


def _curves(drawn: _Drawn) -> Plot:
    from rm_server.training.figures import draw

    def paint(axes: Axes) -> None:
        for arm in drawn.arms():
            color = drawn.colors[arm]
            series = [points for run in drawn.metric["values"][arm] if (points := drawn.points(run))]
            by_step: dict[int, list[float]] = {}
            for points in series:
                axes.plot([p.step for p in points], [p.value for p in points], color=color, linewidth=0.7, alpha=0.25)
                for point in points:
                    by_step.setdefault(point.step, []).append(point.value)
            # The mean where all runs of the arm are: the mean of those that went on would be of other runs.
            shared = [step for step in sorted(by_step) if len(by_step[step]) == len(series)]
            means = [sum(by_step[step]) / len(series) for step in shared]
            axes.plot(shared, means, "o-", color=color, linewidth=2.2, markersize=4, label=arm)
        axes.set(xlabel="step", ylabel=drawn.metric["metric"])
        axes.legend(frameon=False)

    caption = "Thin: a run. Thick: the mean of the arm, at steps that all of its runs reported."
    return Plot("Over training", draw(5.6, 3.5, paint), caption)


def _registered(runs: Mapping[str, RunRecord], colors: Colors, report: Row) -> Plot:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
    from matplotlib.ticker import MaxNLocator

    from rm_server.training.figures import draw

    arms = {
        run: metric_arm for metric in report["metrics"] for metric_arm, of in metric["values"].items() for run in of
    }

    def paint(axes: Axes) -> None:
        for arm, color in colors.items():
            times = sorted(date2num(_time(runs[run].points[0].time)) for run, of in arms.items() if of == arm)
            axes.plot(
                times,
                list(range(1, len(times) + 1)),
                "o-",
                drawstyle="steps-post",
                color=color,
                markersize=3,
                label=arm,
            )
        axes.xaxis.set_major_locator(locator := AutoDateLocator())
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="time of a run's first outcome, UTC", ylabel="runs")
        axes.legend(frameon=False)

    return Plot("Runs so far", draw(5.6, 3.0, paint), "Runs of each arm with an outcome, one after the other.")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
