"""An evaluation for people: a table for the terminal, and a page that stands alone, plots included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from rm_server.training import figures
from rm_server.training.assessment import Report
from rm_server.training.statistics import Estimate, Interval
from rm_server.training.wording import count

MAX_SUBSETS = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``interval`` and ``meaning`` may be empty."""

    name: str
    value: str
    interval: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the few figures at the top of the page."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with what it shows."""

    title: str
    svg: str
    caption: str


def to_text(report: Report) -> str:
    """The verdict, its cautions, and the figures with their intervals, for a terminal."""
    rows = list(_rows(report))
    widths = [max(len(getattr(row, column)) for row in rows) for column in ("name", "value", "interval")]
    lines = [report.verdict.headline, report.verdict.text, ""]
    lines += [f"  {r.name:<{widths[0]}}  {r.value:>{widths[1]}}  {r.interval:<{widths[2]}}".rstrip() for r in rows]
    if report.verdict.cautions:
        lines += ["", *(f"  ! {caution}" for caution in report.verdict.cautions)]
    return "\n".join(lines) + "\n"


def to_html(report: Report) -> str:
    """The page. Everything is inside: no script, no file beside it, nothing fetched."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        count=count,
        subject=report.subject,
        create_time=report.create_time,
        evaluation=report.evaluation,
        verdict=report.verdict,
        tiles=list(_tiles(report)),
        plots=list(_plots(report)),
        rows=list(_rows(report)),
    )


def _rows(report: Report) -> Iterator[Row]:
    e = report.evaluation
    yield Row("accuracy", _percent(e.accuracy), _percents(e.accuracy_interval), "pairs where the chosen scores higher")
    yield Row(
        "length-matched accuracy",
        _percent(e.length_matched_accuracy),
        _percents(e.length_matched_interval),
        f"the same on {count(e.num_length_matched, 'pair')} of about equal length (ratio 0.8 to 1.25)",
    )
    yield Row(
        "longer wins",
        _percent(e.longer_wins_accuracy),
        _percents(e.longer_wins_interval),
        "what always choosing the longer completion would reach",
    )
    yield Row(
        "gain over longer wins",
        _points(e.gain_over_longer_wins),
        _percents(e.gain_interval),
        "difference of the two, in points",
    )
    yield Row(
        "score beyond length",
        _number(e.beyond_length.coefficient),
        _numbers(e.beyond_length.interval),
        "log-odds of being chosen per standard deviation of the score difference, lengths being equal; above 0 is good"
        + ("" if e.beyond_length.p_value is None else f" (test of 0: p = {e.beyond_length.p_value:.2g})"),
    )
    yield Row(
        "length beyond score",
        _number(e.beyond_length.length_coefficient),
        _numbers(e.beyond_length.length_interval),
        "the same for the log-length difference, scores being equal",
    )
    yield Row("length correlation", _number(e.length_correlation), "", "of score difference and log-length difference")
    for name, estimate in (
        ("accuracy, longer chosen", e.accuracy_longer_chosen),
        ("accuracy, shorter chosen", e.accuracy_shorter_chosen),
    ):
        if estimate is not None:
            yield _share_row(name, estimate)
    r = e.reliability
    yield Row(
        "calibration error",
        _percent(r.expected_calibration_error),
        "",
        "mean gap between how sure the scores are and how often they are right",
    )
    yield Row("Brier score", f"{r.brier_score:.3f}", "", "0 is best, 0.25 is knowing nothing")
    yield Row("log loss", f"{r.log_loss:.3f}", "", "the Bradley–Terry loss on these pairs; 0.693 is knowing nothing")
    yield Row("slope", _number(r.slope), _numbers(r.slope_interval), "below 1: the scores are too sure of themselves")
    if (a := e.ratings) is not None:
        yield Row(
            "ratings, Pearson", _number(a.pearson), _numbers(a.pearson_interval), f"over {count(a.num_texts, 'text')}"
        )
        yield Row("ratings, Spearman", _number(a.spearman), _numbers(a.spearman_interval), "of ranks")
        yield Row(
            "ratings, within prompts",
            _number(a.within_prompts),
            _numbers(a.within_prompts_interval),
            f"Spearman's, averaged over {count(a.num_prompts, 'prompt')}: what a reward model is trained for",
        )
    for name, estimate in list(e.subsets.items())[:MAX_SUBSETS]:
        yield _share_row(f"accuracy, {name}", estimate)


def _share_row(name: str, estimate: Estimate) -> Row:
    return Row(name, _percent(estimate.value), _percents(estimate.interval), count(estimate.count, "pair"))


def _tiles(report: Report) -> Iterator[Tile]:
    e = report.evaluation
    yield Tile("Accuracy", _percent(e.accuracy), _percents(e.accuracy_interval))
    yield Tile("“Longer wins”", _percent(e.longer_wins_accuracy), "the baseline to beat")
    yield Tile(
        "Accuracy at equal length",
        _percent(e.length_matched_accuracy),
        f"{_percents(e.length_matched_interval)} {count(e.num_length_matched, 'pair')}".strip(),
    )
    yield Tile("Score beyond length", _number(e.beyond_length.coefficient), _numbers(e.beyond_length.interval))
    if e.ratings is not None:
        yield Tile(
            "Rank agreement within prompts",
            _number(e.ratings.within_prompts),
            _numbers(e.ratings.within_prompts_interval),
        )


def _plots(report: Report) -> Iterator[Plot]:
    e = report.evaluation
    yield Plot(
        "Agreement with people",
        figures.accuracies(e),
        "Dots are estimates, bars 95 % intervals. The dashed line is chance.",
    )
    yield Plot(
        "Does length decide?",
        figures.length_bands(e),
        "A model that only follows length falls to 0 % on the left and reaches 100 % on the right.",
    )
    yield Plot(
        "Scores of chosen and rejected completions",
        figures.score_distributions(e),
        "Much overlap is normal: only differences within a prompt count.",
    )
    yield Plot(
        "How sure, and how often right",
        figures.reliability(e),
        "Below the dashed line the scores are too sure of themselves. A larger dot stands for more pairs.",
    )
    if report.rated is not None:
        yield Plot(
            "Scores and ratings",
            figures.ratings(report.rated),
            "Each dot is a text; the line is the least-squares fit over all prompts.",
        )
    if e.subsets:
        yield Plot(
            "Parts of the data",
            figures.subsets(list(e.subsets.items())[:MAX_SUBSETS]),
            f"The first {MAX_SUBSETS} parts by name." if len(e.subsets) > MAX_SUBSETS else "With numbers of pairs.",
        )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _percents(interval: Interval | None) -> str:
    return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _numbers(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"
