"""`rm-server gc`: removes the artifacts that no version names."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from typing import Any

from rm_server.commands.common import SHORT_DIGEST, add_command, add_json_option, print_json, print_table, short_bytes
from rm_server.commands.target import add_home_option, opened_home

DEFAULT_MIN_AGE_HOURS = 1.0


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_command(
        commands,
        "gc",
        run_gc,
        "removes the artifacts that no version names, here and in a shared store",
        "rm-server gc --home models --dry-run",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--min-age-hours",
        type=_hours,
        default=DEFAULT_MIN_AGE_HOURS,
        metavar="HOURS",
        help="younger ones stay, an upload may be under way (default: 1)",
    )
    add_json_option(parser)
    add_home_option(parser, is_required=True)


def run_gc(arguments: argparse.Namespace) -> int:
    """A row an artifact, and the sum."""
    from rm_server.registry.garbage import collect_garbage

    with opened_home(arguments) as (catalog, artifacts):
        garbage = collect_garbage(
            catalog, artifacts, min_age_s=arguments.min_age_hours * 3600, removes=not arguments.dry_run
        )
    num_bytes = sum(item.num_bytes for item in garbage)
    if arguments.json:
        print_json(
            {"removed": not arguments.dry_run, "bytes": num_bytes, "artifacts": [asdict(item) for item in garbage]}
        )
        return 0
    print_table(
        [asdict(item) for item in garbage],
        (
            ("DIGEST", lambda row: row["digest"][:SHORT_DIGEST]),
            ("SIZE", lambda row: short_bytes(row["num_bytes"])),
            ("IN", lambda row: row["place"]),
        ),
        empty="Every artifact is named by a version, or is too young to tell.",
    )
    if garbage:
        verb = "would be removed" if arguments.dry_run else "removed"
        print(f"{len(garbage)} artifact{'s' * (len(garbage) > 1)}, {num_bytes} bytes, {verb}.")
    return 0


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not (math.isfinite(hours) and hours >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no number of hours from 0")
    return hours
