"""The options that name a home, its catalog and its artifacts: the same for every command that works on one."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

# SQLAlchemy is imported by the command that needs it, not by `rm-server --help`.
if TYPE_CHECKING:
    from rm_server.registry.home import Home

CATALOG_VARIABLE = "RM_CATALOG"
ARTIFACTS_VARIABLE = "RM_ARTIFACTS"


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
