"""`ppo-client train` and `ppo-client resume`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.config_file import load_config, override, to_toml

if TYPE_CHECKING:
    from ppo_client.ppo.trainer import PPOTrainer

_STOPPED_BY_SIGNAL = 128  # plus the signal's number, as shells count

_TRAIN_EXAMPLES = """examples:
  ppo-client train ppo.toml
  ppo-client train ppo.toml --output runs/a --steps 200 --seed 3
  ppo-client train ppo.toml --reward-target rm-1:50051 --reward-target rm-2:50051 --reward-model helpfulness@stable
  ppo-client train ppo.toml --set ppo.learning_rate=2e-6 --set kl.controller=adaptive
  ppo-client train ppo.toml --show-config          all settings with their values, and nothing else
  torchrun --nproc-per-node 4 -m ppo_client.cli train ppo.toml

exit status: 0 done; 1 failed; 2 a setting or an example is wrong; 75 the reward service is away, 76 another version of
the reward answered (both after a checkpoint: go on with `ppo-client resume`); 130, 143 stopped by a signal, likewise
"""

_RESUME_EXAMPLES = """examples:
  ppo-client resume runs/a
  ppo-client resume runs/a --steps 400
  ppo-client resume runs/a --set reward.on_version_change=follow
"""

# Options that stand for settings: argument, setting, metavar, help.
_NAMED = (
    ("--output", "train.output", "DIR", "directory of logs and checkpoints"),
    ("--steps", "train.num_steps", "N", "PPO steps"),
    ("--seed", "train.seed", "N", "of everything that is drawn"),
    ("--run", "train.run", "ID", "id by which the service knows the run"),
    ("--policy", "policy.model", "DIR", "starting policy"),
    ("--prompts", "data.prompts", "FILE", "file of prompts: .jsonl, .json, .csv, .parquet"),
    ("--reward-model", "reward.model", "SELECTOR", "name, name@3 or name@label"),
)
_NUMBERS = ("train.num_steps", "train.seed")


def add_parser(subparsers: Any) -> None:
    train = subparsers.add_parser(
        "train",
        help="train a policy by PPO",
        description="PPO with rewards from a service. All settings are in one TOML file; the command line wins.",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", nargs="?", type=Path, help="TOML file of settings")
    for option, setting, metavar, text in _NAMED:
        train.add_argument(option, dest=setting, metavar=metavar, help=f"{text} ({setting})")
    _add_common(train)
    train.add_argument("--show-config", action="store_true", help="print all settings as TOML, and leave")
    train.set_defaults(run=_train)

    resume = subparsers.add_parser(
        "resume",
        help="go on with a run",
        description="Goes on after the latest checkpoint, as if the run had never stopped.",
        epilog=_RESUME_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resume.add_argument("output", type=Path, help="directory of the run")
    resume.add_argument("--steps", dest="train.num_steps", metavar="N", help="PPO steps in all (train.num_steps)")
    _add_common(resume)
    resume.set_defaults(run=_resume)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reward-target",
        dest="reward.targets",
        action="append",
        metavar="HOST:PORT",
        help="address of the reward service; may be given several times (reward.targets)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="any setting; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _overrides(args: argparse.Namespace) -> list[str]:
    """The command line's settings, as `section.key=value`; those of --set come last, so they win."""
    named = []
    for name, value in vars(args).items():
        if "." in name and value is not None:
            named.append(f"{name}={value}" if name in _NUMBERS else override(name, value))
    return [*named, *args.set]


def _train(args: argparse.Namespace) -> int:
    config = load_config(PPOConfig, args.config, _overrides(args))
    if args.show_config:
        print(to_toml(config), end="")
        return 0
    # torch takes seconds to import: after the settings are known to be right.
    from ppo_client.ppo.models.build import quiet_transformers
    from ppo_client.ppo.trainer import PPOTrainer

    quiet_transformers()
    return _run(PPOTrainer(config), args)


def _resume(args: argparse.Namespace) -> int:
    from ppo_client.ppo.models.build import quiet_transformers
    from ppo_client.ppo.trainer import PPOTrainer

    quiet_transformers()
    return _run(PPOTrainer.resume(args.output, overrides=_overrides(args)), args)


def _run(trainer: PPOTrainer, args: argparse.Namespace) -> int:
    caught: list[int] = []
    with _stopping(trainer, caught):
        state = trainer.train()
    is_stopped = trainer.run.is_stopped
    if trainer.run.accelerator.is_main_process:
        output = trainer.run.output
        result = {
            "run": state.run,
            "step": state.step,
            "episodes": state.episodes,
            "output": str(output),
            "stopped": is_stopped,
            "reward_version": state.version.version if state.version else None,
        }
        if args.json:
            print(json.dumps(result))
        else:
            end = f"go on with `ppo-client resume {output}`" if is_stopped else f"the policy is in {output / 'policy'}"
            print(f"{state.run}: {state.step} steps, {state.episodes} episodes; {end}", file=sys.stderr)
    # Left to the interpreter's end, gloo's threads may still run then, and abort the process.
    trainer.run.accelerator.end_training()
    if not is_stopped:
        return 0  # after a signal, too, that came when all was done
    # With several processes it may be another one that caught it, and which signal that was is not told.
    return _STOPPED_BY_SIGNAL + (caught[0] if caught else signal.SIGTERM)


@contextmanager
def _stopping(trainer: PPOTrainer, caught: list[int]) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the step under way, with a checkpoint; a second one ends it at once."""

    def stop(number: int, _frame: object) -> None:
        caught.append(number)
        trainer.stop_after_step()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
