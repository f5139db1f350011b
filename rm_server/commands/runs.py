"""`rm-server runs, end-run, split`: which training run is scored by which version, and how new runs are divided."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import (
    CommandError,
    Row,
    add_json_option,
    add_parser,
    add_reason_option,
    print_json,
    print_table,
    short_time,
    version_number,
)
from rm_server.commands.target import add_target_command, open_server_or_home

if TYPE_CHECKING:
    from rm_server.registry.records import Arm

_SPLIT_HELP = """\
Divides a model's runs between versions, by weight. A run is given an arm once, by a hash of its id, and keeps its
version; a new split concerns new runs, and those that register with `move`. Pins come before the split.
"""

_SPLIT_EXAMPLES = """\
examples:
  rm-server split set helpfulness a=3:0.9 b=4:0.1 --load --reason "twice the data"
  rm-server split set helpfulness a=3:1 b=4:0 --ramp b=0@2026-12-01T00:00Z --ramp b=1@2026-12-08T00:00Z
  rm-server split show helpfulness
  rm-server split pin helpfulness exp-17 4
  rm-server split remove helpfulness
"""


def add_parsers(commands: Any) -> None:
    """Adds the commands of this file."""
    parser = add_target_command(
        commands, "runs", run_runs, "the training runs, last seen first", "rm-server runs helpfulness"
    )
    parser.add_argument("model", nargs="?", default="", help="only this one")
    add_json_option(parser)

    parser = add_target_command(
        commands,
        "end-run",
        run_end_run,
        "ends a run's leases, so that its versions may go; the run is over then, or registers again",
        "rm-server end-run exp-17",
    )
    parser.add_argument("training_run", metavar="RUN")
    parser.add_argument("model", nargs="?", default="", help="only its lease on this one (default: all)")

    split = add_parser(commands, "split", "divides a model's runs between versions", _SPLIT_HELP, _SPLIT_EXAMPLES)
    actions = split.add_subparsers(title="actions", metavar="ACTION", required=True)

    parser = add_target_command(
        actions, "set", run_set, "divides, in place of the split there is", "rm-server split set m a=1:1 b=2:1"
    )
    parser.add_argument("model")
    parser.add_argument("arms", nargs="+", metavar="NAME=VERSION:WEIGHT", help="an arm, its version and its weight")
    parser.add_argument(
        "--ramp",
        action="append",
        default=[],
        metavar="NAME=WEIGHT@TIME",
        help="the arm's weight at a time (ISO 8601, UTC where it names no zone); straight lines in between; repeatable",
    )
    parser.add_argument(
        "--salt", default="", help="goes into the hash (default: the present one, else the model's name)"
    )
    parser.add_argument("--load", action="store_true", help="loads the versions first, where they are not loaded")
    add_reason_option(parser)
    add_json_option(parser)

    parser = add_target_command(
        actions, "show", run_show, "splits, shares of this moment, pins", "rm-server split show --json"
    )
    parser.add_argument("model", nargs="?", default="", help="only this one")
    add_json_option(parser)

    parser = add_target_command(
        actions, "remove", run_remove, "ends a split; runs keep what they have", "rm-server split remove m"
    )
    parser.add_argument("model")
    add_reason_option(parser)

    parser = add_target_command(
        actions, "pin", run_pin, "gives one run a version", "rm-server split pin helpfulness exp-17 4"
    )
    parser.add_argument("model")
    parser.add_argument("training_run", metavar="RUN")
    parser.add_argument("version", type=version_number)
    add_reason_option(parser)

    parser = add_target_command(
        actions, "unpin", run_unpin, "takes a pin away", "rm-server split unpin helpfulness exp-17"
    )
    parser.add_argument("model")
    parser.add_argument("training_run", metavar="RUN")
    add_reason_option(parser)


def run_runs(arguments: argparse.Namespace) -> int:
    """A row a run."""
    with open_server_or_home(arguments) as target:
        runs = target.runs(arguments.model)
    if arguments.json:
        print_json(runs)
        return 0
    print_table(
        runs,
        (
            ("RUN", lambda row: row["run"]),
            ("MODEL", lambda row: row["model"]),
            ("VERSION", lambda row: row["version"]),
            ("ARM", lambda row: row["arm"]),
            ("ITEMS", lambda row: row["items"]),
            ("TOKENS/S", lambda row: round(row["tokens_per_second"], 2)),  # of a run that is over: 0, not 1.9e-08
            ("MEAN ± STD", _spread),
            ("LAST SEEN", lambda row: short_time(row["last_seen_time"])),
            ("LEASE UNTIL", _lease),
        ),
        empty="No run has been seen yet.",
    )
    return 0


def run_end_run(arguments: argparse.Namespace) -> int:
    """A trainer that goes on gets what the bare name means then; RewardClient stops where that is another version."""
    with open_server_or_home(arguments) as target:
        target.end_run(arguments.training_run, arguments.model)
    of = f" on {arguments.model}" if arguments.model else ""
    print(f"{arguments.training_run} holds no version{of} any more.")
    return 0


def run_set(arguments: argparse.Namespace) -> int:
    """Waits until the versions are loaded, if it shall."""
    arms = parse_arms(arguments.arms, arguments.ramp)
    with open_server_or_home(arguments) as target:
        split = target.set_split(
            arguments.model, arms, salt=arguments.salt, load=arguments.load, comment=arguments.comment
        )
    if arguments.json:
        print_json(split)
    else:
        _print_splits([split])
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """A row an arm, then a row a pin."""
    with open_server_or_home(arguments) as target:
        known = target.splits(arguments.model)
    if arguments.json:
        print_json(known)
        return 0
    _print_splits(known["splits"], arguments.model)
    if known["pins"]:
        print()
        columns = (
            ("MODEL", lambda row: row["model"]),
            ("RUN", lambda row: row["run"]),
            ("VERSION", lambda row: row["version"]),
        )
        print_table(known["pins"], columns, empty="")
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """New runs get the label `stable` again."""
    with open_server_or_home(arguments) as target:
        target.remove_split(arguments.model, comment=arguments.comment)
    print(f"{arguments.model} has no split any more; new runs get its label stable.")
    return 0


def run_pin(arguments: argparse.Namespace) -> int:
    """A run that has a version moves when it registers with `move`."""
    with open_server_or_home(arguments) as target:
        target.set_pin(arguments.model, arguments.training_run, arguments.version, comment=arguments.comment)
    print(f"{arguments.training_run} gets {arguments.model}@{arguments.version} when it asks next.")
    return 0


def run_unpin(arguments: argparse.Namespace) -> int:
    """The run keeps what it has until it registers with `move`."""
    with open_server_or_home(arguments) as target:
        target.remove_pin(arguments.model, arguments.training_run, comment=arguments.comment)
    print(f"{arguments.training_run} is not pinned any more.")
    return 0


def parse_arms(texts: Sequence[str], ramps: Sequence[str]) -> list[Arm]:
    """Arms from ``NAME=VERSION:WEIGHT`` and ``NAME=WEIGHT@TIME``. Raises CommandError."""
    from rm_server.registry.records import Arm, RampPoint

    points: dict[str, list[RampPoint]] = {}
    for text in ramps:
        try:
            name, rest = text.split("=")
            weight, time = rest.split("@")
            at = datetime.fromisoformat(time)
            at = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
            points.setdefault(name, []).append(RampPoint(at.timestamp(), float(weight)))
        except (OverflowError, ValueError):
            raise CommandError(f"--ramp {text}: NAME=WEIGHT@TIME was expected, b=0.5@2026-12-01T00:00Z say.") from None
    arms = []
    for text in texts:
        try:
            name, rest = text.split("=")
            version, weight = rest.split(":")
            ramp = sorted(points.pop(name, []), key=lambda point: point.time_s)
            arms.append(Arm(name, version_number(version), float(weight), tuple(ramp)))
        except (ValueError, argparse.ArgumentTypeError):
            raise CommandError(f"{text}: NAME=VERSION:WEIGHT was expected, a=3:0.9 say.") from None
    if points:
        raise CommandError(f"--ramp names {', '.join(points)}, which is no arm of the split.")
    return arms


def _print_splits(splits: Sequence[Row], model: str | None = None) -> None:
    print_table(
        [{**split, **arm} for split in splits for arm in split["arms"]],
        (
            ("MODEL", lambda row: row["model"]),
            ("ARM", lambda row: row["arm"]),
            ("VERSION", lambda row: row["version"]),
            ("SHARE NOW", lambda row: f"{row['share']:.1%}"),
            ("WEIGHT", lambda row: row["weight"]),
            ("RAMP", lambda row: ", ".join(f"{point['weight']:g} at {point['time']}" for point in row["ramp"])),
            ("RUNS", lambda row: row["num_runs"]),
            ("SALT", lambda row: row["salt"]),
            ("SET", lambda row: short_time(row["update_time"])),
        ),
        empty=f"{model or 'No model'} has {'no' if model else 'a'} split; `rm-server split set` makes one.",
    )


def _spread(row: Row) -> str:
    return f"{row['score_mean']:.4g} ± {row['score_std']:.4g}" if row["version_items"] else ""


def _lease(row: Row) -> str:
    """VERSION is what scored it last; where the lease holds another one, the bare name means that one."""
    until, version = short_time(row["lease_expire_time"] or ""), row["lease_version"]
    return f"{until}, on version {version}" if version not in (None, row["version"]) else until
