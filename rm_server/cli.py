"""`rm-server`: picks the command, runs it, and says in one line why it could not."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib.metadata import version as package_version

from rm_server.commands import (
    calibrate,
    catalog,
    evaluate,
    experiment,
    explain,
    export,
    gc,
    models,
    promote,
    register,
    runs,
    scores,
    server,
    shadow,
    token,
    train,
    tune,
)
from rm_server.commands.common import CommandError
from rm_server.config import ConfigError
from rm_server.errors import RmError

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130

_EXAMPLES = """\
examples:
  rm-server register helpfulness ./helpful-v1 --home models
  rm-server label helpfulness stable 1 --home models
  rm-server serve --home models

`rm-server COMMAND --help` says more, with an example.
"""


def parser() -> argparse.ArgumentParser:
    """All commands."""
    root = argparse.ArgumentParser(
        prog="rm-server",
        description="Serves reward models over gRPC, and makes and deploys their versions.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"rm-server {package_version('rm-service')}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    server.add_parsers(commands)
    train.add_parsers(commands)
    evaluate.add_parsers(commands)
    register.add_parsers(commands)
    models.add_parsers(commands)
    runs.add_parsers(commands)
    catalog.add_parsers(commands)
    promote.add_parsers(commands)
    experiment.add_parsers(commands)
    explain.add_parsers(commands)
    scores.add_parsers(commands)
    shadow.add_parsers(commands)
    calibrate.add_parsers(commands)
    gc.add_parsers(commands)
    token.add_parsers(commands)
    export.add_parsers(commands)
    tune.add_parsers(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, 1 (failed), 2 (wrong usage or settings)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 gets all it can show
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ConfigError as error:
        return _say(error, WRONG_USAGE)
    except (CommandError, RmError) as error:
        return _say(error, FAILED)
    except UnicodeEncodeError as error:  # an argument was in another encoding than the system's
        return _say(ConfigError(f"{error.object!r} is no text."), WRONG_USAGE)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us (`| head`) has enough
        return FAILED
    except OSError as error:  # a full disk, a folder that is not ours
        return _say(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _say(error: Exception, status: int) -> int:
    print(f"rm-server: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
