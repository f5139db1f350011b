"""`rm-server token new, list, revoke`: who may call, and what; running servers follow within a second or two."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rm_server.commands.common import (
    CommandError,
    Row,
    add_command,
    add_json_option,
    add_parser,
    positive,
    print_json,
    print_table,
    short_time,
)

DEFAULT_FILE = Path("tokens.toml")
_DURATION = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}

_EXAMPLES = """\
examples:
  rm-server token new trainer-1 --role score --expires 90d
  rm-server token list
  rm-server token revoke trainer-1
"""


def add_parsers(commands: Any) -> None:
    """Adds the commands of this file."""
    group = add_parser(
        commands,
        "token",
        "makes, lists and revokes the tokens that callers show",
        "Who may call, and what. The file has the tokens' hashes only; running servers follow it.",
        _EXAMPLES,
    )
    subcommands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    parser = add_command(
        subcommands,
        "new",
        run_new,
        "prints a new token, once, and files its hash; the server's --tokens names the file",
        "rm-server token new trainer-1 --role score --expires 90d --models helpfulness 'style-*'",
    )
    parser.add_argument("name", help="what history and logs call whoever shows it")
    parser.add_argument(
        "--role", required=True, choices=("score", "deploy", "admin"), help="deploy includes score, admin both"
    )
    parser.add_argument("--expires", metavar="WHEN", help="12h, 90d, 4w, or 2027-01-31T00:00:00Z (default: never)")
    parser.add_argument("--models", nargs="+", default=[], metavar="GLOB", help="only these (default: all)")
    parser.add_argument("--max-requests-per-s", type=float, metavar="N", help="of one server")
    parser.add_argument("--max-items-per-s", type=float, metavar="N", help="completions, of one server")
    parser.add_argument("--max-concurrent-requests", type=positive, metavar="N", help="of one server")
    parser.add_argument("--certificate", metavar="NAME", help="no token: a client's certificate with this CN or SAN")
    _add_file(parser)

    parser = add_command(subcommands, "list", run_list, "the tokens of a file", "rm-server token list --json")
    _add_file(parser)
    add_json_option(parser)

    parser = add_command(
        subcommands, "revoke", run_revoke, "takes a token out of the file", "rm-server token revoke trainer-1"
    )
    parser.add_argument("name")
    _add_file(parser)


def run_new(arguments: argparse.Namespace) -> int:
    """The token alone goes to stdout, so that it can go on to a file or a secret."""
    from rm_server.api.buckets import Limits
    from rm_server.api.tokens import ROLES, TokenEntry, hash_of
    from rm_server.api.tokens_file import add_token, new_token

    for option in ("certificate", "expires"):
        if getattr(arguments, option) == "":  # a shell's unset variable: it would give more than was meant
            raise CommandError(f"--{option} is empty; leave it out, or say which.")
    token = "" if arguments.certificate else new_token()
    entry = TokenEntry(
        name=arguments.name,
        role=ROLES[arguments.role],
        sha256=hash_of(token) if token else b"",
        certificate=arguments.certificate or "",
        expires=_expiry(arguments.expires, datetime.now(UTC)) if arguments.expires else None,
        models=tuple(arguments.models),
        limits=Limits(
            max_requests_per_s=arguments.max_requests_per_s,
            max_items_per_s=arguments.max_items_per_s,
            max_concurrent_requests=arguments.max_concurrent_requests,
        ),
    )
    add_token(arguments.file, entry)
    if token:
        print(token)
        print(f"{arguments.file} has its hash; the token itself is nowhere else.", file=sys.stderr)
    else:
        print(f"{arguments.file} lets in the certificate {arguments.certificate!r} as {arguments.name}.")
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """A row a token."""
    from rm_server.api.tokens_file import read_tokens

    now = datetime.now(UTC)
    rows: list[Row] = [
        {
            "name": entry.name,
            "role": entry.role.word,
            "certificate": entry.certificate or None,
            "expires": entry.expires.isoformat().replace("+00:00", "Z") if entry.expires is not None else None,
            "is_expired": entry.expires is not None and entry.expires <= now,
            "models": list(entry.models),
            "max_requests_per_s": entry.limits.max_requests_per_s,
            "max_items_per_s": entry.limits.max_items_per_s,
            "max_concurrent_requests": entry.limits.max_concurrent_requests,
        }
        for entry in read_tokens(arguments.file)
    ]
    if arguments.json:
        print_json(rows)
        return 0
    print_table(
        rows,
        (
            ("NAME", lambda row: row["name"]),
            ("ROLE", lambda row: row["role"]),
            ("SHOWS", lambda row: f"certificate {row['certificate']}" if row["certificate"] else "token"),
            ("EXPIRES", lambda row: short_time(row["expires"] or "") + (" (over)" if row["is_expired"] else "")),
            ("MODELS", lambda row: " ".join(row["models"]) or "all"),
            ("REQUESTS/S", lambda row: row["max_requests_per_s"]),
            ("ITEMS/S", lambda row: row["max_items_per_s"]),
            ("AT ONCE", lambda row: row["max_concurrent_requests"]),
        ),
        empty="Nobody may call.",
    )
    return 0


def run_revoke(arguments: argparse.Namespace) -> int:
    """Calls that are under way with it end with their next message."""
    from rm_server.api.tokens_file import revoke_token

    entry = revoke_token(arguments.file, arguments.name)
    print(f"{arguments.name} ({entry.role.word}) may call no more.")
    return 0


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file",
        "--tokens",  # as `serve` calls it
        dest="file",
        type=Path,
        default=DEFAULT_FILE,
        metavar="FILE",
        help=f"the tokens file (default: {DEFAULT_FILE})",
    )


def _expiry(text: str, now: datetime) -> datetime:
    if match := _DURATION.fullmatch(text):
        return (now + int(match[1]) * _UNITS[match[2]]).replace(microsecond=0)
    try:
        time = datetime.fromisoformat(text)
        when = None if time.tzinfo is None else time.astimezone(UTC)
    except (OverflowError, ValueError):
        when = None
    if when is None:
        raise CommandError(
            f"--expires is {text!r}; 12h, 90d, 4w or a time with its zone (2027-01-31T00:00:00Z) was expected."
        )
    if when <= now:
        raise CommandError(f"--expires is {text!r}, which is over already.")
    return when
