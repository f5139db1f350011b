"""`rm-server rollback, backup, restore`: the catalog of a home, whether a server runs on it or not."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import CommandError, add_command

if TYPE_CHECKING:
    from rm_server.registry.artifacts import ArtifactStore
    from rm_server.registry.catalog import Catalog


def add_parsers(commands: Any) -> None:
    """Adds the commands of this file."""
    parser = _add(
        commands,
        "rollback",
        run_rollback,
        "lets a label name what it named before",
        "rm-server rollback helpfulness --home models --comment 'scores of code were wrong'",
    )
    parser.add_argument("model")
    parser.add_argument("--label", default="stable", help="which label (default: stable)")
    parser.add_argument("--comment", default="", help="why; kept in the history")

    parser = _add(
        commands,
        "backup",
        run_backup,
        "writes the catalog to one file; servers may go on meanwhile",
        "rm-server backup catalog.json --home models",
    )
    parser.add_argument("file", type=Path)

    parser = _add(
        commands,
        "restore",
        run_restore,
        "makes the catalog what it was at a backup",
        "rm-server restore catalog.json --home models",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--replace", action="store_true", help="although there is a catalog already")
    parser.add_argument("--comment", default="", help="why; kept in the history")


def run_rollback(arguments: argparse.Namespace) -> int:
    """A server on this home loads the version and moves the label then."""
    from rm_server.registry.home import operating_system_user

    with _opened(arguments.home) as (catalog, _):
        before, now = catalog.rollback(
            arguments.model, arguments.label, operating_system_user(), comment=arguments.comment
        )
    print(f"{arguments.model}@{arguments.label} names {now} again; it named {before}.")
    return 0


def run_backup(arguments: argparse.Namespace) -> int:
    """Artifacts are not in the file: their folder is copied by what copies folders."""
    from rm_server.registry.backup import back_up

    with _opened(arguments.home) as (catalog, _):
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

    with _opened(arguments.home) as (catalog, artifacts):
        revision = restore(
            catalog, arguments.file, operating_system_user(), arguments.comment, replaces=arguments.replace
        )
        missing = missing_artifacts(catalog, artifacts)
    print(f"The catalog is what it was at revision {revision}.")
    for record in missing:
        print(f"{record.model}@{record.version} has no files: put artifacts/{record.digest} back, or delete it.")
    return 0


@contextmanager
def _opened(home: Path) -> Iterator[tuple[Catalog, ArtifactStore]]:
    from rm_server.registry.home import open_home

    if not home.is_dir():
        raise CommandError(f"{home} is no folder; --home is the folder that `rm-server serve` runs on.")
    catalog, artifacts = open_home(home)
    try:
        yield catalog, artifacts
    finally:
        catalog.close()


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help_: str, example: str
) -> argparse.ArgumentParser:
    parser = add_command(commands, name, run, help_, example)
    parser.add_argument("--home", type=Path, metavar="DIR", required=True, help="the home whose catalog it is")
    return parser
