"""Where a command works: on a running server (`--server`) or on a home (`--home`)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import CommandError, add_command

if TYPE_CHECKING:
    from rm_server.api.admin import Admin
    from rm_server.commands.home import HomeAdmin
    from rm_server.registry.artifacts import ArtifactStore
    from rm_server.registry.catalog import Catalog
    from rm_server.registry.home import Home

DEFAULT_SERVER = "127.0.0.1:50051"
CATALOG_VARIABLE = "RM_CATALOG"
ARTIFACTS_VARIABLE = "RM_ARTIFACTS"


def add_target_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help_: str, example: str
) -> argparse.ArgumentParser:
    """A parser for a command that works on either."""
    parser = add_command(commands, name, run, help_, example)
    add_server_options(parser)
    add_home_option(parser)
    return parser


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The server, and how to be let in."""
    group = parser.add_argument_group("the server")
    group.add_argument(
        "--server",
        metavar="HOST:PORT",
        help=f"a running server (default: $RM_TARGET, else {DEFAULT_SERVER})",
    )
    group.add_argument("--token-file", type=Path, metavar="FILE", help="the token it wants (default: $RM_TOKEN)")
    group.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="speak TLS, and trust this certificate authority (default: $RM_TLS_CA)",
    )
    group.add_argument(
        "--cert",
        type=Path,
        metavar="FILE",
        help="the certificate to show, where it asks for one (default: $RM_TLS_CERT)",
    )
    group.add_argument("--key", type=Path, metavar="FILE", help="the certificate's key (default: $RM_TLS_KEY)")


def add_home_option(parser: argparse.ArgumentParser, *, is_required: bool = False) -> None:
    """A home, in place of a server, and where its catalog and artifacts are if not in it."""
    group = parser.add_argument_group("the home")
    group.add_argument(
        "--home", type=Path, metavar="DIR", required=is_required, help="work on this home; no server is asked"
    )
    add_place_options(group)


def add_place_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--catalog`` and ``--artifacts``: where several servers share what a home has for one."""
    parser.add_argument(
        "--catalog",
        metavar="URL",
        help=f"a database shared by several servers, postgresql+psycopg://USER@HOST/DATABASE (default: "
        f"${CATALOG_VARIABLE}, else a file in the home); other users see what is typed here, so keep a password in "
        "the variable, or in a PGPASSFILE",
    )
    parser.add_argument(
        "--artifacts",
        metavar="URL",
        help=f"a folder, or a store shared by several servers, s3://BUCKET/PREFIX for example (default: "
        f"${ARTIFACTS_VARIABLE}, else a folder in the home)",
    )


def home_of(arguments: argparse.Namespace) -> Home:
    """What the options name, or else the environment."""
    from rm_server.registry.home import Home

    home: Path = arguments.home
    return Home(
        home,
        catalog=arguments.catalog or os.environ.get(CATALOG_VARIABLE, ""),
        artifacts=arguments.artifacts or os.environ.get(ARTIFACTS_VARIABLE, ""),
    )


@contextmanager
def open_server(arguments: argparse.Namespace) -> Iterator[Admin]:
    """The server that the arguments name; its refusals become CommandError."""
    from rm_server.api.admin import Admin, AdminError

    ca = _file(arguments.ca, "RM_TLS_CA")
    cert, key = _file(arguments.cert, "RM_TLS_CERT"), _file(arguments.key, "RM_TLS_KEY")
    if (cert is None) != (key is None) or (cert is not None and ca is None):
        raise CommandError("--cert and --key (RM_TLS_CERT, RM_TLS_KEY) belong together, and need --ca (RM_TLS_CA).")
    target = arguments.server or os.environ.get("RM_TARGET") or DEFAULT_SERVER
    if "," in target:
        raise CommandError(f"{target} names several servers, and a command asks one: say which with --server.")
    try:
        with Admin(
            target,
            token=_token(arguments.token_file),
            ca=ca,
            cert=cert,
            key=key,
        ) as admin:
            yield admin
    except AdminError as error:
        raise CommandError(str(error)) from error


@contextmanager
def open_server_or_home(arguments: argparse.Namespace) -> Iterator[Admin | HomeAdmin]:
    """A home where one is named, else a server."""
    if arguments.home is None:
        with open_server(arguments) as admin:
            yield admin
        return
    if arguments.server:
        raise CommandError("--home and --server are both given; a server has its own home.")
    from rm_server.commands.home import HomeAdmin
    from rm_server.registry.home import operating_system_user

    with opened_home(arguments) as (catalog, _):
        yield HomeAdmin(catalog, operating_system_user())


@contextmanager
def opened_home(
    arguments: argparse.Namespace, *, may_be_lost: bool = False, may_be_new: bool = False
) -> Iterator[tuple[Catalog, ArtifactStore]]:
    """Catalog and artifacts of the home that the arguments name, which exists; ``may_be_lost``: see `open_home`.

    ``may_be_new``: with a shared catalog it is a place for what is fetched, and is made.
    """
    from rm_server.registry.home import open_home

    home = home_of(arguments)
    if not (arguments.home.is_dir() or (may_be_new and home.catalog)):
        raise CommandError(f"{arguments.home} is no folder; --home is the folder that `rm-server serve` runs on.")
    catalog, artifacts = open_home(home, may_be_lost=may_be_lost)
    try:
        yield catalog, artifacts
    finally:
        catalog.close()


def _file(named: Path | None, variable: str) -> Path | None:
    """The file of an option, else of the environment, as our clients read it."""
    return named or (Path(path) if (path := os.environ.get(variable)) else None)


def _token(file: Path | None) -> str:
    """Without the newline at the end of the file that it is, or was, in."""
    try:
        token = os.environ.get("RM_TOKEN", "") if file is None else file.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise CommandError(f"{file} is no text, so it has no token.") from None
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise CommandError(f"The token of {file or 'RM_TOKEN'} has more than printable ASCII; no server knows it.")
    return token
