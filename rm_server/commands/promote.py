"""`rm-server promote`: moves a label to a version, if what is filed about it allows that."""

from __future__ import annotations

import argparse
from typing import Any

from rm_server.commands.common import (
    add_json_option,
    add_reason_option,
    print_json,
    version_number,
)
from rm_server.commands.target import add_target_command, open_server_or_home

REFUSED = 1


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_target_command(
        commands,
        "promote",
        run_promote,
        "moves a label to a version, unless that is worse beyond chance",
        "rm-server promote helpfulness 4 --dry-run",
    )
    parser.add_argument("model")
    parser.add_argument("version", type=version_number)
    parser.add_argument("--label", default="stable", help="which label (default: stable)")
    parser.add_argument("--dry-run", action="store_true", help="only ask; exit status 1 where it would be refused")
    parser.add_argument("--force", action="store_true", help="although the gate objects; needs --reason")
    add_reason_option(parser)
    add_json_option(parser)


def run_promote(arguments: argparse.Namespace) -> int:
    """Says what was looked at, and what it showed. A server loads the version first, where necessary."""
    if arguments.force and not arguments.comment.strip():
        arguments.parser.error("--force needs --reason: it is kept in the history")
    with open_server_or_home(arguments) as target:
        answer = target.promote(
            arguments.model,
            arguments.version,
            arguments.label,
            force=arguments.force,
            dry_run=arguments.dry_run,
            comment=arguments.comment,
        )
    if arguments.json:
        print_json(answer)
    else:
        for finding in answer["findings"]:
            print(f"- {finding}")
        print(_outcome(answer))
    return REFUSED if arguments.dry_run and not answer["allowed"] else 0


def _outcome(answer: dict[str, Any]) -> str:
    name, version, previous = f"{answer['model']}@{answer['label']}", answer["version"], answer["previous_version"]
    if answer["promoted"]:
        return f"{name} names {version}; it named {previous or 'nothing'} before."
    if not answer["allowed"]:
        return f"{name} would not move to {version}."
    return f"{name} names {version} already." if previous == version else f"{name} would move to {version}."
