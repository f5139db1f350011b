"""`rm-server experiment outcome, outcomes, report`: what came of runs, and what that says about the arms of a split."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import (
    CommandError,
    add_json_option,
    add_parser,
    not_negative,
    positive,
    print_json,
    print_table,
    short_time,
    write_text,
)
from rm_server.commands.experiment_text import lines
from rm_server.commands.target import add_target_command, open_server_or_home

if TYPE_CHECKING:
    from rm_server.scoring.comparison.experiment_report import ReportOptions

_HELP = """\
What came of the runs that a split divides between versions. Runs report outcomes (`RewardClient.report_outcome`, or
`experiment outcome` for a judge that runs by hand); the report compares the arms. A run is one observation, and counts
for the arm that it had when it reported first.
"""

_EXAMPLES = """\
examples:
  rm-server experiment outcome exp-17 helpfulness win_rate 0.61 --samples 200
  rm-server experiment outcomes helpfulness --json
  rm-server experiment report helpfulness --baseline stable --html report.html
  rm-server experiment report helpfulness --metric kl --lower-is-better kl --minimum kl=0.5 --until-step 2000
"""


def add_parsers(commands: Any) -> None:
    """Adds the commands of this file."""
    group = add_parser(
        commands, "experiment", "compares the arms of a split by what came of their runs", _HELP, _EXAMPLES
    )
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)

    parser = add_target_command(
        actions,
        "outcome",
        run_outcome,
        "keeps what came of a run; the same run, metric and step again replaces",
        "rm-server experiment outcome exp-17 helpfulness win_rate 0.61 --step 500 --samples 200",
    )
    parser.add_argument("training_run", metavar="RUN")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("metric", metavar="METRIC", help="for example win_rate")
    parser.add_argument("value", metavar="VALUE", type=float)
    parser.add_argument(
        "--step", type=not_negative, default=0, metavar="N", help="the run's step (default: 0, the whole run)"
    )
    parser.add_argument(
        "--samples", type=not_negative, default=0, metavar="N", help="how many judgements it is the mean of"
    )

    parser = add_target_command(
        actions, "outcomes", run_outcomes, "what runs have reported", "rm-server experiment outcomes helpfulness --json"
    )
    parser.add_argument("model", metavar="MODEL")
    add_json_option(parser)

    parser = add_target_command(
        actions,
        "report",
        run_report,
        "each arm against the baseline: better, worse, or how many more runs it would take to tell",
        "rm-server experiment report helpfulness --html report.html",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--metric", help="only this one (default: all, corrected for how many they are)")
    parser.add_argument("--baseline", metavar="ARM", help="compare with this arm (default: the one with most runs)")
    parser.add_argument("--lower-is-better", action="append", default=[], metavar="METRIC", help="repeatable")
    parser.add_argument(
        "--minimum",
        action="append",
        default=[],
        metavar="METRIC=DIFFERENCE",
        help="the least difference that would matter: how many runs would find it; repeatable",
    )
    parser.add_argument(
        "--last", type=positive, default=1, metavar="K", help="a run's mean over its last K steps (default 1)"
    )
    parser.add_argument("--until-step", type=positive, metavar="N", help="only what was reported of steps up to N")
    parser.add_argument("--html", type=Path, metavar="FILE", help="writes a page with plots")
    add_json_option(parser)


def run_outcome(arguments: argparse.Namespace) -> int:
    """Says which version and arm it was kept with."""
    with open_server_or_home(arguments) as target:
        kept = target.report_outcome(
            arguments.training_run,
            arguments.model,
            arguments.metric,
            arguments.value,
            step=arguments.step,
            samples=arguments.samples,
        )
    arm = f", arm {kept['arm']}" if kept["arm"] else ", which no split gave it"
    print(f"{arguments.metric} {arguments.value:g} of {kept['run']} with {kept['model']}@{kept['version']}{arm}.")
    return 0


def run_outcomes(arguments: argparse.Namespace) -> int:
    """A row an outcome, earliest first."""
    with open_server_or_home(arguments) as target:
        evidence = target.experiment_evidence(arguments.model)
    rows = [{"run": run.run, **asdict(point)} for run in evidence.runs for point in run.points]
    rows.sort(key=lambda row: row["time"])
    if arguments.json:
        print_json(rows)
        return 0
    print_table(
        rows,
        (
            ("RUN", lambda row: row["run"]),
            ("METRIC", lambda row: row["metric"]),
            ("STEP", lambda row: row["step"]),
            ("VALUE", lambda row: row["value"]),
            ("SAMPLES", lambda row: row["num_samples"]),
            ("VERSION", lambda row: row["version"]),
            ("ARM", lambda row: row["arm"]),
            ("TIME", lambda row: short_time(row["time"])),
        ),
        empty="No run has reported an outcome yet.",
    )
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """A summary, or JSON; a page where it is asked for."""
    from rm_server.scoring.comparison.experiment_report import report

    options = _options(arguments)
    with open_server_or_home(arguments) as target:
        evidence = target.experiment_evidence(arguments.model)
    content = report(evidence, options)
    if arguments.json:
        print_json(content)
    if arguments.html:
        if not content["metrics"]:
            raise CommandError("There is nothing to draw yet: no run of an arm has reported an outcome.")
        from rm_server.commands.experiment_page import page

        write_text(arguments.html, page(content))
    if not arguments.json:
        print("\n".join(lines(content)))
    return 0


def _options(arguments: argparse.Namespace) -> ReportOptions:
    from rm_server.scoring.comparison.experiment_report import ReportOptions
    from rm_server.scoring.comparison.run_values import Cut

    return ReportOptions(
        metric=arguments.metric,
        baseline=arguments.baseline,
        lower_is_better=frozenset(arguments.lower_is_better),
        minimum_differences=parse_minimums(arguments.minimum),
        cut=Cut(arguments.last, arguments.until_step),
    )


def parse_minimums(texts: Sequence[str]) -> dict[str, float]:
    """Differences by metric from ``METRIC=DIFFERENCE``. Raises CommandError."""
    minimums = {}
    for text in texts:
        metric, _, number = text.partition("=")
        try:
            difference = float(number)
        except ValueError:
            difference = 0.0
        if not (metric and 0 < difference < float("inf")):
            raise CommandError(f"--minimum {text}: METRIC=DIFFERENCE above 0 was expected, win_rate=0.02 say.")
        minimums[metric] = difference
    return minimums
