"""`rm-server models, load, unload, delete, label, history, watch`: what versions there are, and which of them serve."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rm_server.commands.common import (
    SHORT_DIGEST,
    Row,
    add_command,
    add_json_option,
    add_reason_option,
    positive,
    print_json,
    print_table,
    short_bytes,
    short_time,
    version_number,
)
from rm_server.commands.target import add_home_option, add_server_options, open_server, open_server_or_home


def add_parsers(commands: Any) -> None:
    """Adds the commands of this file."""
    parser = _add(
        commands, "models", run_models, "the models with their versions", "rm-server models helpfulness --json"
    )
    parser.add_argument("model", nargs="?", default="", help="only this one")
    add_json_option(parser)
    add_home_option(parser)

    parser = _add(commands, "load", run_load, "loads a version beside the others", "rm-server load helpfulness@3")
    parser.add_argument("selector", help="NAME@3 or NAME@LABEL")
    parser.add_argument(
        "--precision", default="", help="fp32, bf16 or fp16 (default: its serving profile's, else the server's)"
    )
    add_reason_option(parser)

    parser = _add(commands, "unload", run_unload, "takes a version out of memory", "rm-server unload helpfulness@2")
    parser.add_argument("selector", help="NAME@2 or NAME@LABEL")
    parser.add_argument("--force", action="store_true", help="although a label names it")
    add_reason_option(parser)

    parser = _add(
        commands,
        "delete",
        run_delete,
        "takes a version that nothing needs out of the catalog; its number is never given again",
        "rm-server delete helpfulness@2 --reason 'trained on the held-out pairs'",
    )
    parser.add_argument("selector", metavar="NAME@VERSION", help="by its number: what a label names is needed")
    add_reason_option(parser)
    add_home_option(parser)

    parser = _add(
        commands, "label", run_label, "lets a label name a version", "rm-server label helpfulness stable 3 --load"
    )
    parser.add_argument("model")
    parser.add_argument("label", help="stable, canary or any other name")
    parser.add_argument("version", nargs="?", type=version_number, help="what it shall name")
    parser.add_argument("--remove", action="store_true", help="takes the label away")
    parser.add_argument("--load", action="store_true", help="loads the version first, if it is not loaded")
    parser.add_argument("--unload-previous", action="store_true", help="unloads what it named, once that is idle")
    add_reason_option(parser)
    add_home_option(parser)

    parser = _add(commands, "history", run_history, "who changed what, and why", "rm-server history helpfulness")
    parser.add_argument("model", nargs="?", default="", help="only this one")
    parser.add_argument(
        "--limit", type=positive, default=100, help="so many, newest first (default: 100); a server gives up to 1000"
    )
    add_json_option(parser)
    add_home_option(parser)

    parser = _add(commands, "watch", run_watch, "changes of the models, as they happen", "rm-server watch helpfulness")
    parser.add_argument("model", nargs="?", default="", help="only this one")
    add_json_option(parser)


def run_models(arguments: argparse.Namespace) -> int:
    """A row a version."""
    with open_server_or_home(arguments) as target:
        models = target.models(arguments.model)
    if arguments.json:
        print_json(models)
        return 0
    print_table(
        [version for model in models for version in model["versions"]],
        (
            ("MODEL", lambda row: row["model"]),
            ("VERSION", lambda row: row["version"]),
            ("DIGEST", lambda row: row["digest"][:SHORT_DIGEST]),
            ("KIND", lambda row: f"composite of {', '.join(row['parts'])}" if row["parts"] else row["kind"]),
            ("STATE", lambda row: row["state"]),
            ("LABELS", lambda row: ",".join(row["labels"])),
            ("MEMORY", lambda row: short_bytes(row["memory_bytes"])),
            ("REGISTERED", lambda row: short_time(row["create_time"])),
            ("BY", lambda row: row["created_by"]),
            ("COMMENT", lambda row: row["error"] or row["comment"]),
        ),
        empty="The catalog is empty; `rm-server register` adds versions.",
    )
    return 0


def run_load(arguments: argparse.Namespace) -> int:
    """Waits until the version serves."""
    with open_server(arguments) as server:
        version = server.load(arguments.selector, arguments.precision, comment=arguments.comment)
    print(f"{_name(version)} serves; it takes {short_bytes(version['memory_bytes']) or 'no memory of its own'}.")
    return 0


def run_unload(arguments: argparse.Namespace) -> int:
    """Waits until the version's last work is done."""
    with open_server(arguments) as server:
        version = server.unload(arguments.selector, force=arguments.force, comment=arguments.comment)
    print(f"{_name(version)} is unloaded.")
    return 0


def run_delete(arguments: argparse.Namespace) -> int:
    """Refused while a label, split, pin, shadow, composite, adapter or lease needs it, or while it is loaded."""
    model, _, version = arguments.selector.partition("@")
    try:
        number = version_number(version)
    except argparse.ArgumentTypeError:
        arguments.parser.error(
            f"argument NAME@VERSION: {arguments.selector!r}: a number was expected, helpfulness@2 say"
        )
    with open_server_or_home(arguments) as target:
        target.delete(model, number, comment=arguments.comment)
    print(f"{model}@{number} is deleted.")
    return 0


def run_label(arguments: argparse.Namespace) -> int:
    """Moves or removes a label."""
    model, label, version = arguments.model, arguments.label, arguments.version
    if arguments.remove == (version is not None):
        arguments.parser.error("give either a version or --remove")
    if arguments.remove and (arguments.load or arguments.unload_previous):
        arguments.parser.error("--load and --unload-previous go with a version, not with --remove")
    with open_server_or_home(arguments) as target:
        if arguments.remove:
            print(
                f"{model}@{label} is removed; it named {target.remove_label(model, label, comment=arguments.comment)}."
            )
            return 0
        previous = target.set_label(
            model,
            label,
            version,
            load=arguments.load,
            unload_previous=arguments.unload_previous,
            comment=arguments.comment,
        )
    print(f"{model}@{label} names {version}; it named {previous or 'nothing'} before.")
    return 0


def run_history(arguments: argparse.Namespace) -> int:
    """A row a change."""
    with open_server_or_home(arguments) as target:
        changes = target.history(arguments.model, arguments.limit)
    if arguments.json:
        print_json(changes)
        return 0
    print_table(
        changes,
        (
            ("TIME", lambda row: short_time(row["time"])),
            ("ACTOR", lambda row: row["actor"]),
            ("ACTION", lambda row: row["action"]),
            ("MODEL", lambda row: row["model"]),
            ("VERSION", lambda row: row["version"]),
            ("DETAIL", lambda row: row["detail"]),
            ("COMMENT", lambda row: row["comment"]),
        ),
        empty="Nothing has happened yet.",
    )
    return 0


def run_watch(arguments: argparse.Namespace) -> int:
    """A line a change, until interrupted or until the server stops."""
    with open_server(arguments) as server:
        for change in server.watch(arguments.model):
            print(json.dumps(change) if arguments.json else _change_line(change), flush=True)
    return 0


def _change_line(change: Row) -> str:
    model = change["model"]
    states = ", ".join(f"{version['version']} {version['state']}" for version in model["versions"])
    labels = ", ".join(f"{label}={version}" for label, version in model["labels"].items())
    return f"{change['change']}: {model['model']}: {states or 'no versions'}; {labels or 'no labels'}"


def _name(version: Row) -> str:
    return f"{version['model']}@{version['version']} ({version['digest'][:SHORT_DIGEST]})"


def _add(commands: Any, name: str, run: Any, help_: str, example: str) -> argparse.ArgumentParser:
    parser = add_command(commands, name, run, help_, example)
    add_server_options(parser)
    return parser
