"""`rm-server serve, status`: the server itself, and what it does."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from rm_server.commands.common import add_command, add_json_option, print_json, short_time
from rm_server.commands.target import add_place_options, add_server_options, open_server

# Option -> setting, for those that have an option of their own; `--set` reaches all of them.
_SETTINGS = {
    "home": "home",
    "listen": "listen",
    "http": "http",
    "catalog": "catalog_url",
    "artifacts": "artifacts",
    "default_model": "default_model",
    "token_file": "token_file",
    "tokens": "auth.tokens",
    "device": "engine.device",
    "workers": "engine.workers",
}


def add_parsers(commands: Any) -> None:
    """Adds the commands of this file."""
    parser = add_command(
        commands,
        "serve",
        run_serve,
        "serves the versions of a home over gRPC and HTTP, until SIGTERM",
        "rm-server serve --home models --listen 127.0.0.1:50051 --http 127.0.0.1:8080",
    )
    parser.add_argument(
        "--home", metavar="DIR", help="the folder of catalog and artifacts; made if its parent is there"
    )
    add_place_options(parser)
    parser.add_argument("--listen", metavar="HOST:PORT", help="gRPC (default: 127.0.0.1:50051; port 0: any)")
    parser.add_argument("--http", metavar="HOST:PORT", help="HTTP (default: 127.0.0.1:8080; empty: none)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML; the options here win")
    parser.add_argument("--default-model", metavar="SELECTOR", help="behind the bare /get_reward and /classify")
    parser.add_argument("--token-file", metavar="FILE", help="callers must show the token in this file")
    parser.add_argument("--tokens", metavar="FILE", help="callers must show a token of this file: see `token new`")
    parser.add_argument("--insecure-listen", action="store_true", help="beyond loopback without TLS and tokens")
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="where versions compute: cpu (default), cuda:0, …; cuda: a GPU for each worker",
    )
    parser.add_argument("--workers", metavar="N", help="processes that compute; 0: in this one (default: 1)")
    parser.add_argument("--deterministic", action="store_true", help="bit-identical scores, whatever the batch")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting: --set engine.max_batch_tokens=8192",
    )

    parser.add_argument("--show-config", action="store_true", help="print all settings as TOML, and do not serve")

    parser = add_command(commands, "status", run_status, "what a server is and does", "rm-server status --json")
    add_server_options(parser)
    add_json_option(parser)


def run_serve(arguments: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT, then drains."""
    from rm_server.config import ServeSettings
    from rm_server.config_sources import as_toml, load_settings

    overrides: dict[str, Any] = {
        setting: value for option, setting in _SETTINGS.items() if (value := getattr(arguments, option)) is not None
    }
    if arguments.insecure_listen:
        overrides["allow_insecure"] = True
    if arguments.deterministic:
        overrides["engine.deterministic"] = True
    for assignment in arguments.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            arguments.parser.error(f"--set {assignment}: NAME=VALUE was expected")
        overrides[name] = value
    settings = load_settings(ServeSettings, file=arguments.config, environment=os.environ, overrides=overrides)
    if arguments.show_config:
        print(as_toml(settings), end="")
        return 0

    # Below errors gRPC writes lines of a form of its own between the log's, one for each caller without TLS, say. It
    # looks at this once, when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from rm_server.process import run

    return run(settings)


def run_status(arguments: argparse.Namespace) -> int:
    """A line a fact."""
    with open_server(arguments) as server:
        status = server.status()
    if arguments.json:
        print_json(status)
        return 0
    for name, value in status.items():
        print(f"{name.replace('_', ' '):20}  {short_time(value) if name.endswith('_time') else value}")
    return 0
