"""`rm-server tune`: measures how a version is computed fastest on this machine, and keeps that as its profile."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import Row, add_json_option, add_parser, add_reason_option, print_json, print_table
from rm_server.commands.target import add_home_option, opened_home

# What computes is imported by the command that needs it: `rm-server --help` must not load torch.
if TYPE_CHECKING:
    from rm_server.training.tune import Tuning

DEFAULT_S = 60.0

_HELP = """\
Measures on this machine how a version is computed fastest: in which precision, with how many workers and threads, in
batches of how many tokens; and so its ONNX versions, if `rm-server export` has made some. The best is kept in the
catalog as the version's serving profile for this kind of device. A server on such a device that loads the version
without being told a precision takes the profile's; workers, threads and batches are the server's own settings, and are
printed. Versions are never swapped for one another: the fastest is named, and a label can be moved to it.
"""

_EXAMPLES = """\
examples:
  rm-server tune helpfulness@3 --home models
  rm-server tune helpfulness@stable --home models --device cuda:0 --seconds 30 --json
"""


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_parser(commands, "tune", "finds how a version is computed fastest here", _HELP, _EXAMPLES)
    parser.set_defaults(run=run_tune, parser=parser)
    parser.add_argument("version", metavar="MODEL@VERSION", help="model@3 or model@label")
    parser.add_argument("--seconds", type=float, default=DEFAULT_S, help="take about so long (default 60)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda:0, …")
    parser.add_argument("--workers", type=int, metavar="N", help="try no more processes than this (default: the cores)")
    add_reason_option(parser)
    parser.add_argument("--quiet", action="store_true", help="do not say what is being done")
    add_json_option(parser)
    add_home_option(parser, is_required=True)


def run_tune(arguments: argparse.Namespace) -> int:
    """Measures, keeps, and prints."""
    tuning = tune(arguments, arguments.version, seconds=arguments.seconds, max_workers=arguments.workers)
    if arguments.json:
        print_json(tuning.as_dict())
    else:
        print_tuning(tuning)
    return 0


def tune(
    arguments: argparse.Namespace, version: str, *, seconds: float = DEFAULT_S, max_workers: int | None = None
) -> Tuning:
    """For this command, and for `register --tune`."""
    from rm_server.registry.home import operating_system_user
    from rm_server.training.tune import tune_version

    def say(text: str) -> None:
        if not arguments.quiet:
            print(f"rm-server: {text} …", file=sys.stderr)

    with opened_home(arguments) as (catalog, artifacts):
        return tune_version(
            catalog,
            artifacts,
            version,
            actor=operating_system_user(),
            device=arguments.device,
            seconds=seconds,
            max_workers=max_workers,
            comment=arguments.comment,
            say=say,
        )


def print_tuning(tuning: Tuning) -> None:
    """A row for each way that was measured, then what was chosen."""
    content = tuning.as_dict()
    rows: list[Row] = [*content["ways"], *content["batches"], *content["left_out"]]
    print_table(
        rows,
        (
            ("VERSION", lambda row: row["version"]),
            ("PRECISION", lambda row: row["precision"]),
            ("WORKERS", lambda row: row["workers"]),
            ("THREADS", lambda row: row["threads_per_worker"]),
            ("BATCH", lambda row: row.get("max_batch_tokens")),
            ("TOKENS/S", lambda row: f"{row['tokens_per_s']:.0f}" if "tokens_per_s" in row else ""),
            ("ROUNDS", lambda row: _rounds(row.get("rates", ()))),
            ("GOLDEN", lambda row: _difference(row.get("golden_difference"))),
            ("", lambda row: row.get("reason", "")),
        ),
        "Nothing was measured.",
    )
    print(f"On {tuning.device}:")
    for profile in tuning.profiles:
        print(
            f"  {profile.model}@{profile.version}  {profile.precision}, {profile.workers} × "
            f"{profile.threads_per_worker} workers × threads, batches of {profile.max_batch_tokens} tokens: "
            f"{profile.tokens_per_s:.0f} tokens/s"
        )
    named, fastest = tuning.profiles[0], tuning.best_ways[0]
    own = next(one for one in tuning.best_ways if one.arm.key == (named.model, named.version))
    if fastest is not own:
        print(
            f"{named.model}@{fastest.arm.key[1]} is {fastest.tokens_per_s / own.tokens_per_s:.2g} times as fast as "
            f"{named.model}@{named.version}. It is another version, with scores of its own."
        )
    elif len(tuning.best_ways) > 1:
        print(f"{named.model}@{named.version} is the fastest of these versions.")
    print(
        f"Kept as serving profile: loads take its precision. For the rest: rm-server serve "
        f"--set engine.workers={named.workers} --set engine.threads_per_worker={named.threads_per_worker} "
        f"--set engine.max_batch_tokens={named.max_batch_tokens}"
    )


def _rounds(rates: Sequence[float]) -> str:
    """How many, and how far apart they were."""
    return f"{len(rates)}, {min(rates):.0f}–{max(rates):.0f}" if rates else ""


def _difference(value: float | None) -> str:
    return "" if value is None else f"±{value:.1g}"
