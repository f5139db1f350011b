"""`rm-server rollback, backup, restore`: a label, or the whole catalog, as it was before."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rm_server.commands.common import CommandError, add_command, add_reason_option
from rm_server.commands.target import add_home_option, add_target_command, open_server_or_home, opened_home
from rm_server.registry.records import version_name


def add_parsers(commands: Any) -> None:
    """Adds the commands of this file."""
    parser = add_target_command(
        commands,
        "rollback",
        run_rollback,
        "lets a label name what it named before",
        "rm-server rollback helpfulness --comment 'scores of code were wrong'",
    )
    parser.add_argument("model")
    parser.add_argument("--label", default="stable", help="which label (default: stable)")
    add_reason_option(parser)

    parser = add_command(
        commands,
        "backup",
        run_backup,
        "writes the catalog to one file; servers may go on meanwhile",
        "rm-server backup catalog.json --home models",
    )
    parser.add_argument("file", type=Path)
    add_home_option(parser, is_required=True)

    parser = add_command(
        commands,
        "restore",
        run_restore,
        "makes the catalog what it was at a backup",
        "rm-server restore catalog.json --home models",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--replace", action="store_true", help="although there is a catalog already")
    add_reason_option(parser)
    add_home_option(parser, is_required=True)


def run_rollback(arguments: argparse.Namespace) -> int:
    """A server loads the version where necessary, and moves the label then."""
    with open_server_or_home(arguments) as target:
        before, now = target.rollback(arguments.model, arguments.label, comment=arguments.comment)
    print(f"{arguments.model}@{arguments.label} names {now} again; it named {before}.")
    return 0


def run_backup(arguments: argparse.Namespace) -> int:
    """Artifacts are not in the file: their folder is copied by what copies folders."""
    from rm_server.registry.backup import back_up

    with opened_home(arguments) as (catalog, _):
        try:
            revision = back_up(catalog, arguments.file)
        except OSError as error:
            raise CommandError(f"{arguments.file} cannot be written: {error.strerror}.") from error
    print(f"{arguments.file} has the catalog at revision {revision}.")
    return 0


def run_restore(arguments: argparse.Namespace) -> int:
    """Says which versions have no files."""
    from rm_server.registry.backup import restore
    from rm_server.registry.home import missing_artifacts, operating_system_user

    if not arguments.file.is_file():
        raise CommandError(f"{arguments.file} is no file; one that `rm-server backup` wrote was expected.")
    arguments.home.mkdir(parents=True, exist_ok=True)  # a new machine has none yet
    with opened_home(arguments, may_be_lost=True) as (catalog, artifacts):
        revision = restore(
            catalog, arguments.file, operating_system_user(), arguments.comment, replaces=arguments.replace
        )
        missing = missing_artifacts(catalog, artifacts)
    print(f"The catalog is what it was at revision {revision}.")
    for record in missing:
        print(f"{version_name(record.key)} has no files: put artifacts/{record.digest} back, or delete it.")
    return 0
