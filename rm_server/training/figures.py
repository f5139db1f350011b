"""The plots of an evaluation's page, as SVG text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rm_server.training.evaluation import Evaluation, LengthBand, RatedScores
from rm_server.training.statistics import Estimate, Interval
from rm_server.training.wording import count

CHOSEN, REJECTED, NEUTRAL, MODEL, INK = "#1b7f79", "#d1673a", "#8a93a3", "#2f5aa8", "#1f2733"
MAX_POINTS = 2000

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "svg.hashsalt": "rm_server",  # the same figures give the same bytes
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c3c9d4",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#566071",
    "ytick.color": "#566071",
    "axes.grid": True,
    "grid.color": "#e8ebf0",
    "axes.axisbelow": True,
}


def draw(width: float, height: float, paint: Callable[[Axes], None]) -> str:
    """An SVG element of ``width`` × ``height`` inches, as wide as its place on the page."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )


def accuracies(evaluation: Evaluation) -> str:
    """Accuracies with intervals, one line each, against chance."""
    rows: list[tuple[str, float, Interval | None, int, str]] = [
        ("all pairs", evaluation.accuracy, evaluation.accuracy_interval, evaluation.num_pairs, MODEL)
    ]
    if evaluation.length_matched_accuracy is not None:
        rows.append(
            (
                "equal length (±25 %)",
                evaluation.length_matched_accuracy,
                evaluation.length_matched_interval,
                evaluation.num_length_matched,
                MODEL,
            )
        )
    for name, estimate in (
        ("people chose the longer", evaluation.accuracy_longer_chosen),
        ("people chose the shorter", evaluation.accuracy_shorter_chosen),
    ):
        if estimate is not None:
            rows.append((name, estimate.value, estimate.interval, estimate.count, MODEL))
    rows.append(
        (
            "“longer wins”, all pairs",
            evaluation.longer_wins_accuracy,
            evaluation.longer_wins_interval,
            evaluation.num_pairs,
            NEUTRAL,
        )
    )

    def paint(axes: Axes) -> None:
        axes.axvline(50, color=NEUTRAL, linestyle="--", linewidth=1)
        for position, (_, value, interval, _, color) in enumerate(rows):
            if interval is not None:
                axes.plot([100 * interval[0], 100 * interval[1]], [position] * 2, color=color, linewidth=3, alpha=0.35)
            axes.plot(100 * value, position, "o", color=color, markersize=8, clip_on=False, zorder=3)
            axes.annotate(
                f"{100 * value:.1f}",
                (100 * value, position),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(rows)), [f"{name}\n{count(num_pairs, 'pair')}" for name, _, _, num_pairs, _ in rows])
        axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.6), xlabel="agreement with people's choice, %")
        axes.grid(visible=False, axis="y")

    return draw(5.6, 3.5, paint)


def score_distributions(evaluation: Evaluation) -> str:
    """Histograms of the scores of chosen and rejected completions."""
    both = evaluation.distributions

    def paint(axes: Axes) -> None:
        for name, summary, color in (("chosen", both.chosen, CHOSEN), ("rejected", both.rejected, REJECTED)):
            axes.stairs(summary.counts, both.edges, fill=True, color=color, alpha=0.35)
            axes.stairs(
                summary.counts, both.edges, color=color, linewidth=1.4, label=f"{name}, mean {summary.mean:.2f}"
            )
            axes.axvline(summary.mean, color=color, linestyle="--", linewidth=1)
        axes.set(xlabel="score", ylabel="completions")
        axes.legend(frameon=False)

    return draw(5.6, 3.5, paint)


def reliability(evaluation: Evaluation) -> str:
    """How often the scores are right against how sure they are; the size of a dot is its share of the pairs."""
    bins = evaluation.reliability.bins

    def paint(axes: Axes) -> None:
        axes.plot([50, 100], [50, 100], color=NEUTRAL, linestyle="--", linewidth=1, label="as sure as right")
        for one in bins:
            if one.interval is not None:
                low, high = one.interval
                axes.plot([100 * one.predicted] * 2, [100 * low, 100 * high], color=MODEL, linewidth=3, alpha=0.25)
        axes.plot(
            [100 * b.predicted for b in bins], [100 * b.observed for b in bins], color=MODEL, linewidth=1, alpha=0.6
        )
        axes.scatter(
            [100 * b.predicted for b in bins],
            [100 * b.observed for b in bins],
            s=[20 + 400 * b.count / evaluation.num_pairs for b in bins],
            color=MODEL,
            clip_on=False,  # a dot at 100 % is whole
            zorder=3,
        )
        axes.set(
            xlim=(49, 101),
            ylim=(min(20.0, *(100 * b.observed - 3 for b in bins)), 101),
            xlabel="how sure: sigmoid of the score difference, %",
            ylabel="how often right, %",
        )
        axes.legend(frameon=False, loc="lower right")

    return draw(5.6, 3.5, paint)


def length_bands(evaluation: Evaluation) -> str:
    """Accuracy by how much longer the chosen completion is."""
    bands = evaluation.length_bands

    def paint(axes: Axes) -> None:
        axes.axhline(50, color=NEUTRAL, linestyle="--", linewidth=1)
        for position, band in enumerate(bands):
            estimate = band.accuracy
            axes.bar(position, 100 * estimate.value, width=0.62, color=MODEL, alpha=0.75)
            if estimate.interval is not None:
                axes.plot([position] * 2, [100 * end for end in estimate.interval], color=INK, linewidth=1.4)
        axes.set_xticks(
            range(len(bands)), [f"{band_name(band)}\n{count(band.accuracy.count, 'pair')}" for band in bands]
        )
        axes.set(
            ylim=(0, 100), ylabel="agreement, %", xlabel="length of the chosen completion, times the rejected one's"
        )
        axes.grid(visible=False, axis="x")

    return draw(5.6, 3.5, paint)


def band_name(band: LengthBand) -> str:
    """For example ``0.8–1.25``."""
    if band.low is None:
        return f"under {band.high:g}"
    return f"over {band.low:g}" if band.high is None else f"{band.low:g}–{band.high:g}"


def ratings(rated: RatedScores) -> str:
    """Every rated text's score against its rating (of very many, every n-th), with the least-squares line."""
    step = max(1, -(-len(rated.scores) // MAX_POINTS))
    x, y = rated.ratings, rated.scores

    def paint(axes: Axes) -> None:
        axes.scatter(x[::step], y[::step], s=14, color=MODEL, alpha=0.5, linewidths=0)
        if np.ptp(x) > 0:
            slope, intercept = np.polyfit(x, y, 1)
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, intercept + slope * ends, color=REJECTED, linewidth=1.5)
        axes.set(xlabel="people's rating", ylabel="score")

    return draw(5.6, 3.5, paint)


def subsets(named: Sequence[tuple[str, Estimate]]) -> str:
    """Accuracy of each part of the data."""

    def paint(axes: Axes) -> None:
        axes.axvline(50, color=NEUTRAL, linestyle="--", linewidth=1)
        for position, (_, estimate) in enumerate(named):
            if estimate.interval is not None:
                axes.plot([100 * e for e in estimate.interval], [position] * 2, color=MODEL, linewidth=3, alpha=0.35)
            axes.plot(100 * estimate.value, position, "o", color=MODEL, markersize=7, clip_on=False, zorder=3)
        axes.set_yticks(range(len(named)), [f"{name} ({estimate.count})" for name, estimate in named])
        axes.set(xlim=(0, 100), ylim=(len(named) - 0.5, -0.5), xlabel="agreement with people's choice, %")

    return draw(5.6, 1.2 + 0.32 * len(named), paint)
