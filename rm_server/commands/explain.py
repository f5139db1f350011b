"""`rm-server explain`: what a version reads of one item, and what it makes of it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from rm_server.commands.common import CommandError, add_command, add_json_option, print_json, print_table
from rm_server.commands.target import add_server_options, open_server

FAILED = 1
_STDIN = "@-"


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_command(
        commands,
        "explain",
        run_explain,
        "shows the text and tokens that a version reads of one item, and its score",
        "rm-server explain helpfulness@stable --prompt 'Tell me a story.' --completion @story.txt",
    )
    parser.add_argument("selector", help="NAME, NAME@3 or NAME@LABEL")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="or @FILE, or @- for stdin (default: none)")
    parser.add_argument("--completion", required=True, metavar="TEXT", help="or @FILE, or @- for stdin")
    parser.add_argument(
        "--run", dest="run_id", default="", help="as this training run would be answered, for the bare name"
    )
    parser.add_argument(
        "--truncation", choices=("refuse", "keep_end", "keep_start"), default="", help="(default: the version's own)"
    )
    parser.add_argument("--calibrated", action="store_true", help="on the model's common scale")
    add_json_option(parser)
    add_server_options(parser)


def run_explain(arguments: argparse.Namespace) -> int:
    """Exit status 1 where the item has no score."""
    if arguments.prompt == arguments.completion == _STDIN:
        arguments.parser.error("only one of --prompt and --completion can come from stdin")
    prompt, completion = _text(arguments.prompt), _text(arguments.completion)
    with open_server(arguments) as server:
        explained = server.explain(
            arguments.selector,
            prompt,
            completion,
            run=arguments.run_id,
            truncation=arguments.truncation,
            calibrated=arguments.calibrated,
        )
    if arguments.json:
        print_json(explained)
    else:
        _print(explained, is_calibrated=arguments.calibrated)
    return 0 if "score" in explained else FAILED


def _text(argument: str) -> str:
    """The argument, or what is in the file that it names; one line break at the end is the file's, not the text's."""
    if not argument.startswith("@"):
        return argument
    try:
        # As bytes: the line breaks within are the text's, whatever they are, and its score depends on them.
        raw = sys.stdin.buffer.read() if argument == _STDIN else Path(argument[1:]).read_bytes()
        return re.sub(r"\r?\n\Z", "", raw.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{argument[1:]} cannot be read: {error}") from error


def _print(explained: dict[str, Any], *, is_calibrated: bool) -> None:
    print(f"{explained['model']}@{explained['version']}, digest {explained['digest']}")
    print(f"chosen by {explained['chosen_by']}")
    _print_reading(explained)
    for component, part in zip(explained["components"], explained["parts"], strict=False):
        print(f"\n{part['name']}: {part['weight']:.6g} × {part['value']:.9g} = {part['weight'] * part['value']:.9g}")
        _print_reading(component)
    if not explained["components"]:
        for part in explained["parts"]:
            print(f"{part['name']}: {part['weight']:.6g} × {part['value']:.9g}")
    if "error" in explained:
        print(f"\nno score: {explained['error']['message']}")
        return
    calibration = explained["calibration"]
    scale = f", {calibration['gain']:.6g} × raw {calibration['bias']:+.6g}" if calibration and is_calibrated else ""
    print(f"\nscore {explained['score']:.9g} ({explained['transform'].replace('_', ' ')}{scale})")


def _print_reading(explained: dict[str, Any]) -> None:
    for text in explained["templated_text"]:
        print(f"\n{text}\n")
    if explained["truncated"] and explained["num_tokens_before_truncation"]:
        print(
            f"truncated by {explained['truncation']}: {explained['num_tokens']} of "
            f"{explained['num_tokens_before_truncation']} are left"
        )
    if explained["tokens"]:
        columns = (
            ("#", lambda row: row["index"]),
            ("ID", lambda row: row["id"]),
            ("TOKEN", lambda row: row["text"]),
            ("PART", lambda row: row["part"]),
        )
        print_table([{"index": i, **token} for i, token in enumerate(explained["tokens"])], columns, empty="")
