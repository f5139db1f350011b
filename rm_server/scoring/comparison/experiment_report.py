"""The report on an experiment: each metric by arm, each arm against the baseline, and what to be wary of. One JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from rm_server.errors import InvalidRequest
from rm_server.scoring.comparison.experiment import (
    ALPHA,
    POWER,
    Comparison,
    Summary,
    compare,
    holm,
    ratio_mismatch,
    runs_needed,
    summarise,
)
from rm_server.scoring.comparison.experiment_evidence import Evidence, RunRecord
from rm_server.scoring.comparison.plain_report import Report, without_undefined
from rm_server.scoring.comparison.run_values import Cut, value_of

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell yet"

MISMATCH_P_VALUE = 0.001
"""Below it the arms' sizes are called wrong: a warning that comes by chance too often is not read."""

FEW_RUNS = 5
"""Below it in an arm a verdict comes with a caution: Welch's test takes the runs' normality on trust then."""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """How to look. ``metric``, ``baseline``: None for all metrics, and for the arm with the most runs.

    ``lower_is_better``: metrics of which less is better. ``minimum_differences``: by metric, the least difference that
    would matter. ``cut``: which steps stand for a run.
    """

    metric: str | None = None
    baseline: str | None = None
    lower_is_better: frozenset[str] = frozenset()
    minimum_differences: Mapping[str, float] = field(default_factory=dict)
    cut: Cut = field(default_factory=Cut)


@dataclass(frozen=True, slots=True)
class _Against:
    """One arm against the baseline by one metric."""

    metric: str
    arm: str
    summaries: tuple[Summary, Summary]
    comparison: Comparison


def report(evidence: Evidence, options: ReportOptions | None = None) -> Report:
    """Without outcomes of runs in an arm ``metrics`` is empty. Raises InvalidRequest for an arm or metric not there."""
    options = options or ReportOptions()
    reported = {point.metric for run in evidence.runs for point in run.points}
    for metric in {
        *options.lower_is_better,
        *options.minimum_differences,
        *([options.metric] if options.metric else []),
    }:
        if metric not in reported:
            there = f"There are: {', '.join(sorted(reported))}." if reported else "There are none."
            raise InvalidRequest(f"{evidence.model!r} has no outcomes of the metric {metric!r}. {there}")
    arms = _arms(evidence.runs)
    baseline = _baseline(arms, options.baseline)
    arms = dict(sorted(arms.items(), key=lambda item: (item[0] != baseline, item[0])))
    metrics = [options.metric] if options.metric else sorted(reported)
    values = {metric: _values(arms, metric, options.cut) for metric in metrics}
    values = {metric: by_arm for metric, by_arm in values.items() if by_arm}
    against = [each for metric, by_arm in values.items() for each in _compared(metric, by_arm, baseline)]
    corrected = holm([each.comparison.p_value for each in against])
    num_comparisons = sum(each.comparison.p_value is not None for each in against)
    rows = {
        (each.metric, each.arm): _row(each, baseline or "", p_value, num_comparisons, options)
        for each, p_value in zip(against, corrected, strict=True)
    }
    return without_undefined(
        {
            "model": evidence.model,
            "create_time": evidence.time,
            "baseline": baseline,
            "options": {
                "last_steps": options.cut.last_steps,
                "until_step": options.cut.until_step,
                "confidence": 1 - ALPHA,
                "power": POWER,
            },
            "num_runs": len(evidence.runs),
            "num_runs_in_no_arm": sum(not run.arm for run in evidence.runs),
            "num_comparisons": num_comparisons,
            "arms": [
                {"arm": name, "version": runs[0].version, "num_runs": len(runs), "is_baseline": name == baseline}
                for name, runs in arms.items()
            ],
            "metrics": [
                {
                    "metric": metric,
                    "higher_is_better": metric not in options.lower_is_better,
                    "arms": [{"arm": arm, **asdict(summarise(list(found.values())))} for arm, found in by_arm.items()],
                    "comparisons": [rows[metric, arm] for arm in by_arm if (metric, arm) in rows],
                    "values": by_arm,
                }
                for metric, by_arm in values.items()
            ],
            "moved_runs": [
                {"run": run.run, "counts_for": run.arm, "versions": list(run.versions)}
                for run in evidence.runs
                if run.arm and run.has_moved
            ],
            "assignment": [asdict(count) for count in evidence.arms],
            "warnings": [*_warnings(evidence, arms, metrics, options), *_few_runs(against, rows)],
            "evidence": evidence.to_json(),
        }
    )


def _arms(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by arm. An arm that had several versions, one after the other, is as many arms: ``a@1`` and ``a@3``."""
    keys = sorted({(run.arm, run.version) for run in runs if run.arm})
    num_versions = Counter(arm for arm, _ in keys)
    return {
        arm if num_versions[arm] == 1 else f"{arm}@{version}": [
            run for run in runs if (run.arm, run.version) == (arm, version)
        ]
        for arm, version in keys
    }


def _baseline(arms: Mapping[str, Sequence[RunRecord]], wanted: str | None) -> str | None:
    if wanted is not None and wanted not in arms:
        there = f"There are: {', '.join(arms)}." if arms else "No run of an arm has reported an outcome yet."
        raise InvalidRequest(f"No run with an outcome has the arm {wanted!r}. {there}")
    return wanted if wanted is not None else max(arms, key=lambda arm: len(arms[arm]), default=None)


def _values(arms: Mapping[str, Sequence[RunRecord]], metric: str, cut: Cut) -> dict[str, dict[str, float]]:
    """One value of each run that has one, by arm; arms without any are left out."""
    found = {
        arm: {run.run: value for run in runs if (value := value_of(run, metric, cut)) is not None}
        for arm, runs in arms.items()
    }
    return {arm: values for arm, values in found.items() if values}


def _compared(metric: str, by_arm: Mapping[str, Mapping[str, float]], baseline: str | None) -> Iterator[_Against]:
    if baseline is None or baseline not in by_arm:
        return
    base = list(by_arm[baseline].values())
    for arm, found in by_arm.items():
        if arm != baseline:
            values = list(found.values())
            yield _Against(metric, arm, (summarise(values), summarise(base)), compare(values, base))


def _row(
    each: _Against, baseline: str, corrected: float | None, num_comparisons: int, options: ReportOptions
) -> Report:
    found = each.comparison
    verdict = CANNOT_TELL
    if corrected is not None and corrected < ALPHA:
        is_higher_better = each.metric not in options.lower_is_better
        verdict = BETTER if (found.difference > 0) == is_higher_better else WORSE
    sequence = found.anytime_interval
    row = asdict(found) | {
        "arm": each.arm,
        "baseline": baseline,
        "corrected_p_value": corrected,
        "verdict": verdict,
        "holds_at_any_time": None if sequence is None else not sequence[0] <= 0 <= sequence[1],
        "reason": _reason(each.summaries) if corrected is None else None,
    }
    if corrected is not None and verdict == CANNOT_TELL:
        alpha = ALPHA / num_comparisons
        row["runs_needed"] = {
            "alpha": alpha,
            "if_as_observed": _needed(each, baseline, found.difference, alpha),
            "for_minimum": _needed(each, baseline, options.minimum_differences.get(each.metric), alpha),
        }
    return row


def _needed(each: _Against, baseline: str, difference: float | None, alpha: float) -> Report | None:
    arm, base = each.summaries
    if difference is None or arm.std is None or base.std is None:
        return None
    per_arm = runs_needed(arm.std, base.std, difference, alpha)
    if per_arm is None:
        return {"difference": difference, "more_than_a_million": True}
    more = {each.arm: max(0, per_arm - arm.num_runs), baseline: max(0, per_arm - base.num_runs)}
    return {"difference": difference, "runs_per_arm": per_arm, "more_runs": more}


def _reason(summaries: Sequence[Summary]) -> str:
    if min(summary.num_runs for summary in summaries) < 2:
        return "an arm has a single run; two in each are the least by which chance can be judged"
    return "the runs of each arm all have the same value, so there is no spread to judge chance by"


def _warnings(
    evidence: Evidence, arms: Mapping[str, Sequence[RunRecord]], metrics: Sequence[str], options: ReportOptions
) -> Iterator[str]:
    if outside := sum(not run.arm for run in evidence.runs):
        yield (
            f"{outside} of {len(evidence.runs)} runs with outcomes were given their version by no split (a label, a "
            "number, a pin). They are left out: what was not divided by chance cannot be compared."
        )
    counts = evidence.arms
    for what, observed, expected in (
        ("have registered", [c.num_runs for c in counts], [c.expected_runs for c in counts]),
        ("have reported", [c.num_reporting for c in counts], [c.expected_reporting for c in counts]),
    ):
        p_value = ratio_mismatch(observed, expected) if counts else None
        if p_value is not None and p_value < MISMATCH_P_VALUE:
            seen = ", ".join(
                f"{count.arm} {number} (expected {wanted:.1f})"
                for count, number, wanted in zip(counts, observed, expected, strict=True)
            )
            yield (
                f"Sample ratio mismatch: the runs that {what} do not come to the arms by the split's shares: {seen}; "
                f"p {p_value:.2g}. Find out which runs are missing before you trust any verdict here."
            )
    if any(run.has_moved for runs in arms.values() for run in runs):
        yield "Some runs were scored by several versions. They count for the arm of their first outcome."
    if len(several := {name.partition("@")[0] for name in arms if "@" in name}):
        yield f"The versions of {', '.join(sorted(several))} changed on the way; each counts as an arm of its own."
    for metric in metrics:
        steps = {step for runs in arms.values() for run in runs if (step := options.cut.last_step(run, metric))}
        if len(steps) > 1:
            yield (
                f"The runs' values of {metric} are from different steps, {min(steps)} to {max(steps)}; with a step "
                "that all have reached (--until-step) like is compared with like."
            )


def _few_runs(against: Sequence[_Against], rows: Mapping[tuple[str, str], Report]) -> Iterator[str]:
    decided = [each for each in against if rows[each.metric, each.arm]["verdict"] != CANNOT_TELL]
    if any(summary.num_runs < FEW_RUNS for each in decided for summary in each.summaries):
        yield (
            f"A verdict here rests on fewer than {FEW_RUNS} runs in an arm. So few cannot show how runs are spread: "
            "interval and p-value hold only if their values are normally distributed. Look at more runs before you "
            "act on it."
        )
