"""`rm-server calibrate`: puts a version on its model's common scale, by scores of live traffic."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rm_server.commands.common import (
    add_command,
    add_json_option,
    add_reason_option,
    print_json,
    version_number,
)
from rm_server.commands.target import add_home_option, opened_home


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_command(
        commands,
        "calibrate",
        run_calibrate,
        "puts a version on the scale of another one (a new version gets its calibration from `register`)",
        "rm-server calibrate helpfulness 3 --from-shadow --against 2 --home models",
    )
    parser.add_argument("model")
    parser.add_argument("version", type=version_number)
    parser.add_argument(
        "--from-shadow", action="store_true", required=True, help="by the completions that it scored as a shadow"
    )
    parser.add_argument(
        "--against", type=version_number, metavar="N", required=True, help="the version whose scale it is"
    )
    add_reason_option(parser)
    add_home_option(parser, is_required=True)
    add_json_option(parser)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """Servers on the home use it within a second or two."""
    from rm_server.registry.home import operating_system_user
    from rm_server.training.shadow_calibration import calibrate_from_shadow

    with opened_home(arguments) as (catalog, _):
        calibration = calibrate_from_shadow(
            catalog,
            arguments.model,
            arguments.version,
            arguments.against,
            operating_system_user(),
            arguments.comment,
        )
    if arguments.json:
        print_json(asdict(calibration) | {"digest": calibration.digest})
        return 0
    print(
        f"{arguments.model}@{arguments.version}: calibrated score = {calibration.gain:.6g} * raw "
        f"+ {calibration.bias:.6g}, from {calibration.num_texts} {calibration.source}."
    )
    return 0
