"""An experiment's report in words, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator

from rm_server.commands.common import Row

PEEKING = (
    "Intervals are 95 %, of each comparison by itself, for one look at the end. Who looks again and again, and stops "
    "when a verdict pleases, finds differences that are not there; the any-time intervals hold however often one looks."
)
ONE_VALUE = "A run counts once, for the arm that it had when it reported first (intention to treat)."


def lines(report: Row) -> Iterator[str]:
    """The report as text."""
    if not report["metrics"]:
        yield f"No run of an arm of {report['model']} has reported an outcome yet."
        yield from _warning_lines(report)
        return
    arms = ", ".join(
        f"{arm['arm']} ({count(arm['num_runs'], 'run')}, version {arm['version']})" for arm in report["arms"]
    )
    yield f"{report['model']}: {arms}; the baseline is {report['baseline']}"
    for metric in report["metrics"]:
        yield ""
        yield f"{metric['metric']} ({direction(metric)})"
        rows = [
            (arm["arm"], f"{number(arm['mean'])}{_interval(arm)}", count(arm["num_runs"], "run"), _std(arm))
            for arm in metric["arms"]
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            yield "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        if not metric["comparisons"]:
            yield "  nothing to compare: " + (
                "the baseline has no value" if report["baseline"] not in metric["values"] else "there is one arm"
            )
        for comparison in metric["comparisons"]:
            yield f"  {comparison['arm']} against {comparison['baseline']}: {comparison['verdict'].upper()}"
            for text in details(comparison, report["num_comparisons"]):
                yield f"    {text}"
    yield from _warning_lines(report)
    yield from ("", value_rule(report), ONE_VALUE, PEEKING)


def details(comparison: Row, num_comparisons: int) -> Iterator[str]:
    """What there is to say of a comparison beside its verdict."""
    if "p_value" not in comparison:
        yield f"difference {signed(comparison['difference'])}; {comparison['reason']}"
        return
    low, high = comparison["interval"]
    corrected = f", {comparison['corrected_p_value']:.2g} among {num_comparisons} comparisons (Holm)"
    yield (
        f"difference {signed(comparison['difference'])} [{signed(low)}, {signed(high)}], "
        f"p {comparison['p_value']:.2g}{corrected if num_comparisons > 1 else ''}, "
        f"effect size {comparison['effect_size']:+.2f}"
    )
    if "anytime_interval" in comparison:
        low, high = comparison["anytime_interval"]
        holds = "0 is outside" if comparison["holds_at_any_time"] else "0 is inside"
        yield f"at any time [{signed(low)}, {signed(high)}]: {holds}, however often one has looked"
    else:
        yield "at any time: too few runs for an interval that holds however often one looks"
    for name, assumed in (("if_as_observed", "as large as observed"), ("for_minimum", "the least that matters")):
        if needed := comparison.get("runs_needed", {}).get(name):
            yield _needed(needed, assumed)


def direction(metric: Row) -> str:
    """Which way is better."""
    return "higher is better" if metric["higher_is_better"] else "lower is better"


def value_rule(report: Row) -> str:
    """Which outcomes a run's value is made from."""
    last, until = report["options"]["last_steps"], report["options"].get("until_step")
    rule = "its last step" if last == 1 else f"the mean of its last {last} steps"
    if until is not None:
        return f"A run's value is {rule} up to step {until}."
    return f"A run's value is its outcome as a whole (step 0), else {rule}."


def count(num: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{num} {noun}" + "s" * (num != 1)


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def signed(value: float) -> str:
    """Four digits, with its sign."""
    return f"{value:+.4g}"


def _needed(needed: Row, assumed: str) -> str:
    difference = f"{number(abs(needed['difference']))} ({assumed})"
    if "runs_per_arm" not in needed:
        return f"to tell a difference of {difference} would take more than a million runs"
    (arm, of_arm), (baseline, of_baseline) = needed["more_runs"].items()
    return (
        f"to tell a difference of {difference} takes about {count(of_arm, 'more run')} of {arm} and {of_baseline} of "
        f"{baseline}: {needed['runs_per_arm']} in each give a chance of 80 %"
    )


def _interval(arm: Row) -> str:
    if "interval" not in arm:
        return ""
    low, high = arm["interval"]
    return f" [{number(low)}, {number(high)}]"


def _std(arm: Row) -> str:
    return f"std {number(arm['std'])}" if "std" in arm else "no spread: a single run"


def _warning_lines(report: Row) -> Iterator[str]:
    for warning in report["warnings"]:
        yield from ("", f"warning: {warning}")
