"""summary.json: every figure of the demo, computed from what the processes left behind."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from live import rows_of
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import pearsonr, spearmanr

from ppo_client.ppo.run_facts import switch_steps

SHARE_OF_STEPS = 0.1
"""What counts as the beginning and the end of a run."""


def summarize(work: Path, metrics: str, seconds: dict[str, float]) -> dict[str, Any]:
    """The figures; ``metrics`` is what the server told Prometheus at its end."""
    rescored = json.loads((work / "rescored.json").read_text())
    reference = rescored["texts"]["before"]
    return {
        "reward_model": {f"v{version}": _reward_model(work / f"evaluation_v{version}.json") for version in (1, 2)},
        "versions_compared": _compared(json.loads((work / "compared.json").read_text())),
        "ppo": _run(work / "run_first", rescored["rollouts"]["first"], reference, rescored["texts"]["first"]),
        "second_run": _run(work / "run_second", rescored["rollouts"]["second"], reference, rescored["texts"]["second"]),
        "serving": _serving(metrics),
        "seconds": seconds,
    }


def _reward_model(file: Path) -> dict[str, Any]:
    evaluation = json.loads(file.read_text())
    names = (
        *("num_pairs", "accuracy", "accuracy_interval", "length_matched_accuracy", "longer_wins_accuracy"),
        *("beyond_length", "digest"),
    )
    return {name: evaluation[name] for name in names}


def _compared(scores: dict[str, list[float]]) -> dict[str, float]:
    """Both versions on the same texts."""
    v1, v2 = scores["v1"], scores["v2"]
    return {
        "num_texts": len(v1),
        "pearson": float(pearsonr(v1, v2).statistic),
        "spearman": float(spearmanr(v1, v2).statistic),
        "v1_mean": fmean(v1),
        "v1_std": stdev(v1),
        "v2_mean": fmean(v2),
        "v2_std": stdev(v2),
    }


def _run(run: Path, rollouts: list[list[float]], reference: list[float], after: list[float]) -> dict[str, Any]:
    """``rollouts``: (step, score) of every episode; all scores here are version 2's."""
    rows = rows_of(run / "metrics.jsonl")
    num_steps = int(rows[-1]["step"])
    share = max(1, round(SHARE_OF_STEPS * num_steps))
    first = fmean(score for step, score in rollouts if step <= share)
    last = fmean(score for step, score in rollouts if step > num_steps - share)
    switched = switch_steps(rows)
    return {
        "steps": num_steps,
        "episodes": rows[-1]["episodes"],
        "scored_by": "story@2",
        "score_first": first,
        "score_last": last,
        "reference_mean": fmean(reference),
        "reference_std": stdev(reference),
        "rise_in_reference_std": (last - first) / stdev(reference),
        "held_out_openings_before": fmean(reference),
        "held_out_openings_after": fmean(after),
        "kl_last": fmean(row["kl"] for row in rows[-share:]),
        "entropy_first": fmean(row["entropy"] for row in rows[:share]),
        "entropy_last": fmean(row["entropy"] for row in rows[-share:]),
        "versions": sorted({row["reward_version"] for row in rows}),
        "version_switch_steps": switched,
        "reward_wait_share": sum(row["reward_wait_s"] for row in rows) / sum(row["step_s"] for row in rows),
    }


def _serving(metrics: str) -> dict[str, Any]:
    """Of the calls that score; from the server's own counters."""
    calls = [
        sample
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "rm_requests_total" and sample.labels["method"].startswith("Score") and sample.value
    ]
    by_reason: Counter[str] = Counter()
    for sample in calls:
        by_reason[sample.labels["reason"]] += int(sample.value)
    return {
        "requests": by_reason.total(),
        "failed_requests": sum(count for reason, count in by_reason.items() if reason not in ("ok", "cancelled")),
        # By their caller: a run that is told to stop gives up the step that waits for scores.
        "cancelled_requests": by_reason["cancelled"],
        "versions_served": sorted({int(sample.labels["version"]) for sample in calls if sample.labels["version"]}),
    }
