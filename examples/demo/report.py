"""report.html: what happened in the demo, in pictures and texts, with what a reader should be sceptical of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader
from live import rows_of
from matplotlib.axes import Axes
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import pearsonr
from texts import read_texts

from ppo_client.ppo.run_facts import distinct_share, repeated_share, switch_steps
from rm_server.training.figures import CHOSEN, MODEL, NEUTRAL, REJECTED, draw

V1, V2 = CHOSEN, MODEL
NUM_TEXTS = 6
WIDTH, HEIGHT = 5.2, 2.9


def write_report(work: Path, summary: dict[str, Any], metrics: str, page: Path) -> None:
    """Writes one self-contained page."""
    rescored = json.loads((work / "rescored.json").read_text())
    runs = {name: rows_of(work / f"run_{name}" / "metrics.jsonl") for name in ("first", "second")}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["signed"] = lambda value: f"{value:+.2f}"
    page.write_text(
        environment.get_template("report.html.jinja").render(
            s=summary,
            curves=[
                _run_curves(runs[name], _standardised(rescored["rollouts"][name], summary["ppo"]))
                for name in ("first", "second")
            ],
            agreement=_agreement(json.loads((work / "compared.json").read_text())),
            latency=_latency(metrics),
            texts=_side_by_side(work, rescored["texts"]),
            suspicions=_suspicions(work, rescored, summary),
        ),
        encoding="utf-8",
    )


def _standardised(rollouts: Sequence[Sequence[float]], figures: dict[str, Any]) -> list[tuple[float, float]]:
    """(step, score), in standard deviations from the starting policy's mean, as the runs' calibrated scores are."""
    mean, deviation = figures["reference_mean"], figures["reference_std"]
    return [(step, (score - mean) / deviation) for step, score in rollouts]


def _run_curves(rows: Sequence[dict[str, Any]], rollouts: Sequence[Sequence[float]]) -> dict[str, str]:
    """Score, KL, length and entropy over the steps; where the version switched there is a line."""
    steps = [row["step"] for row in rows]
    switches = switch_steps(rows)

    def mark(axes: Axes) -> None:
        axes.set_xlabel("PPO step")
        for step in switches:
            axes.axvline(step, color=REJECTED, linewidth=1, linestyle="--")
            axes.annotate("version 2", (step, 1), xycoords=("data", "axes fraction"), color=REJECTED,
                          textcoords="offset points", xytext=(3, -9), fontsize=8)  # fmt: skip

    def score(axes: Axes) -> None:
        for version, colour in ((1, V1), (2, V2)):
            own = [row for row in rows if row["reward_version"] == version]
            if own:
                axes.plot([r["step"] for r in own], [r["score_mean"] for r in own], color=colour,
                          label=f"as learnt from, story@{version}")  # fmt: skip
        by_step: dict[float, list[float]] = {}
        for step, value in rollouts:
            by_step.setdefault(step, []).append(value)
        axes.plot(list(by_step), [sum(v) / len(v) for v in by_step.values()], color=NEUTRAL, linewidth=1,
                  label="the same texts, all by story@2")  # fmt: skip
        axes.set_ylabel("mean score (standard deviations)")
        axes.legend(frameon=False, fontsize=8)
        mark(axes)

    def plain(name: str, label: str, colour: str) -> str:
        def paint(axes: Axes) -> None:
            axes.plot(steps, [row[name] for row in rows], color=colour)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            mark(axes)

        return draw(WIDTH, HEIGHT, paint)

    return {
        "score": draw(WIDTH, HEIGHT, score),
        "kl": plain("kl", "KL (nats per story)", MODEL),
        "length": plain("response_tokens_mean", "tokens per story", NEUTRAL),
        "entropy": plain("entropy", "entropy (nats per token)", CHOSEN),
    }


def _agreement(scores: dict[str, list[float]]) -> str:
    def paint(axes: Axes) -> None:
        axes.scatter(scores["v1"], scores["v2"], s=12, color=MODEL, alpha=0.6, linewidths=0)
        axes.set_xlabel("score by story@1")
        axes.set_ylabel("score by story@2")

    return draw(WIDTH, HEIGHT, paint)


def _latency(metrics: str) -> str:
    """The server's own histogram of whole calls, by version."""
    counts: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "rm_request_seconds_bucket" and sample.labels["method"].startswith("Score"):
                buckets = counts.setdefault(sample.labels["version"], {})
                edge = float(sample.labels["le"])
                buckets[edge] = buckets.get(edge, 0) + sample.value

    def paint(axes: Axes) -> None:
        edges = sorted({edge for buckets in counts.values() for edge in buckets})
        names = ["≤ " + (f"{edge * 1000:g} ms" if edge < 1 else f"{edge:g} s") for edge in edges]
        bottom = [0.0] * len(edges)
        for version, colour in (("1", V1), ("2", V2)):
            cumulative = [counts.get(version, {}).get(edge, 0.0) for edge in edges]
            height = [b - a for a, b in pairwise([0.0, *cumulative])]
            axes.bar(names, height, bottom=bottom, color=colour, label=f"story@{version}")
            bottom = [a + b for a, b in zip(bottom, height, strict=True)]
        filled = [i for i, total in enumerate(bottom) if total]
        axes.set_xlim(filled[0] - 0.6, filled[-1] + 0.6)
        axes.set_ylabel("calls")
        axes.tick_params(axis="x", rotation=35)
        axes.legend(frameon=False)

    return draw(WIDTH, HEIGHT, paint)


def _side_by_side(work: Path, scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Openings that no training story has: first, middle and last by what the first run gained."""
    before, after = read_texts(work / "before.jsonl"), read_texts(work / "first.jsonl")
    gains = [b - a for a, b in zip(scores["before"], scores["first"], strict=True)]
    order = sorted(range(len(gains)), key=gains.__getitem__)
    chosen = [order[round(i * (len(order) - 1) / (NUM_TEXTS - 1))] for i in range(NUM_TEXTS)]
    return [
        {
            "prompt": before[i].prompt,
            "before": before[i].completion,
            "after": after[i].completion,
            "before_score": scores["before"][i],
            "after_score": scores["first"][i],
        }
        for i in reversed(chosen)
    ]


def _suspicions(work: Path, rescored: dict[str, Any], summary: dict[str, Any]) -> dict[str, float | None]:
    """Signs of reward hacking, measured: repetition, sameness, length in characters."""
    before, after = ([text.completion for text in read_texts(work / f"{name}.jsonl")] for name in ("before", "first"))
    return {
        "distinct_before": distinct_share(before, 3),
        "distinct_after": distinct_share(after, 3),
        "repeated_before": repeated_share(before, 3),
        "repeated_after": repeated_share(after, 3),
        "characters_before": fmean(map(len, before)),
        "characters_after": fmean(map(len, after)),
        "length_correlation": float(pearsonr([len(text) for text in after], rescored["texts"]["first"]).statistic),
        "kl": summary["ppo"]["kl_last"],
        "entropy_first": summary["ppo"]["entropy_first"],
        "entropy_last": summary["ppo"]["entropy_last"],
    }
