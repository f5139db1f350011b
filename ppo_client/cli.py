"""`ppo-client`: one subcommand per module, and the exit status of what goes wrong."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from enum import IntEnum
from importlib.metadata import version as package_version

from ppo_client.client.errors import (
    DeadlineExceeded,
    InvalidFile,
    InvalidSelector,
    InvalidSettings,
    RewardClientError,
    Unavailable,
)
from ppo_client.ppo.errors import ConfigError, DataError, PPOError, RewardServiceAway, VersionChanged

# Each offers `add_parser(subparsers)`, which sets `run`: a function of the parsed arguments that returns the exit
# status. What is heavy they import when they run.
COMMANDS = ("sft", "train", "evaluate", "sample", "report", "score")

_EXAMPLES = """\
examples:
  ppo-client train ppo.toml --output runs/a
  ppo-client resume runs/a
  ppo-client report runs/a

`ppo-client COMMAND --help` shows more.
"""


class ExitStatus(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    REWARD_SERVICE_AWAY = 75  # EX_TEMPFAIL: try again later
    VERSION_CHANGED = 76


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ppo-client",
        description="Trains language models with rewards from a reward-model service.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ppo-client {package_version('rm-service')}")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"ppo_client.commands.{name}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 gets all it can show
    args = make_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except (PPOError, RewardClientError) as error:
        print(f"ppo-client {args.command}: {error}", file=sys.stderr)
        return exit_status(error)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us (`| head`) has enough
        return ExitStatus.FAILED
    except OSError as error:  # a full disk, a folder that is not ours
        print(f"ppo-client {args.command}: {error}", file=sys.stderr)
        return ExitStatus.FAILED
    except KeyboardInterrupt:
        return 130


def exit_status(error: PPOError | RewardClientError) -> ExitStatus:
    if isinstance(error, (ConfigError, DataError, InvalidFile, InvalidSelector, InvalidSettings)):
        return ExitStatus.USAGE
    if isinstance(error, (RewardServiceAway, Unavailable, DeadlineExceeded)):
        return ExitStatus.REWARD_SERVICE_AWAY
    if isinstance(error, VersionChanged):
        return ExitStatus.VERSION_CHANGED
    return ExitStatus.FAILED


if __name__ == "__main__":
    sys.exit(main())
