"""A shadow's report as a page that stands alone: figures, plots, runs, and the worst disagreements."""

from __future__ import annotations

from typing import Any

from rm_server.commands.page import Plot, drawing, rendered
from rm_server.commands.shadow import figures

MAX_PLOTTED_RUNS = 12


def page(report: dict[str, Any]) -> str:
    """HTML with everything inside: no script, nothing fetched. Raises CommandError without the extra `train`."""
    with drawing():
        plots = _plots(report)
    values = {"report": report, "agreement": report["agreement"], "rows": list(figures(report)), "plots": plots}
    return rendered("shadow.html.jinja", values)


def _plots(report: dict[str, Any]) -> list[Plot]:
    from matplotlib.axes import Axes

    from rm_server.training.figures import CHOSEN, INK, MODEL, NEUTRAL, REJECTED, draw

    live, shadow = f"version {report['version']}", f"version {report['shadow_version']} (shadow)"
    drawn, found = report["plots"], report["agreement"]

    def scatter(axes: Axes) -> None:
        x, y = zip(*drawn["points"], strict=True)
        axes.scatter(x, y, s=10, color=MODEL, alpha=0.4, linewidths=0)
        ends = [min(x), max(x)]
        axes.plot(ends, ends, color=NEUTRAL, linestyle="--", linewidth=1, label="the same score")
        if "scale" in found:
            scale = found["scale"]["value"]
            line = [found["shadow_mean"] + scale * (end - found["score_mean"]) for end in ends]
            axes.plot(ends, line, color=REJECTED, linewidth=1.5, label="shift and scale")
        axes.set(xlabel=live, ylabel=shadow)
        axes.legend(frameon=False)

    def histograms(axes: Axes) -> None:
        for name, counts, color in zip((live, shadow), drawn["counts"], (CHOSEN, REJECTED), strict=True):
            axes.stairs(counts, drawn["edges"], fill=True, color=color, alpha=0.3)
            axes.stairs(counts, drawn["edges"], color=color, linewidth=1.4, label=name)
        axes.set(xlabel="raw score", ylabel="completions")
        axes.legend(frameon=False)

    def quantiles(axes: Axes) -> None:
        x, y = drawn["quantiles"]
        axes.plot([x[0], x[-1]], [x[0], x[-1]], color=NEUTRAL, linestyle="--", linewidth=1)
        axes.plot(x, y, "o-", color=MODEL, markersize=3, linewidth=1)
        axes.set(xlabel=f"quantiles of {live}", ylabel=f"quantiles of {shadow}")

    def flips(axes: Axes) -> None:
        for position, (_, share, num, interval) in enumerate(of_runs):
            if interval is not None:
                axes.plot([100 * end for end in interval], [position] * 2, color=INK, linewidth=3, alpha=0.3)
            axes.plot(100 * share, position, "o", color=REJECTED if position else INK, markersize=7 if num else 4)
        axes.set_yticks(range(len(of_runs)), [f"{name} ({num} prompts)" for name, _, num, _ in of_runs])
        axes.set(xlim=(-2, 102), ylim=(len(of_runs) - 0.5, -0.5), xlabel="another completion is best, % of prompts")

    plots = [
        Plot("Score against score", draw(5.6, 3.8, scatter), "Every dot is a completion; of very many, every n-th."),
        Plot("Distributions", draw(5.6, 3.8, histograms), "Raw scores of the same completions."),
        Plot("Quantile against quantile", draw(5.6, 3.8, quantiles), "A straight line: only shift and scale differ."),
    ]
    of_runs: list[tuple[str, float, int, list[float] | None]] = []
    if "flips" in found:
        total = found["flips"]
        of_runs.append(("all", total["share"]["value"], total["num_groups"], total["share"]["interval"]))
        of_runs += [
            (row["run"] or "no run", row["flip_share"], row["num_groups_compared"], None)
            for row in report["runs"][:MAX_PLOTTED_RUNS]
            if "flip_share" in row
        ]
        caption = (
            "Prompts of which the two prefer different completions, which they do the oftener, the more of them there "
            "are (within prompts, above, does not depend on it). A tie with the best is no difference."
        )
        plots.append(Plot("Flips of the best", draw(5.6, max(2.0, 1.2 + 0.32 * len(of_runs)), flips), caption))
    return plots
