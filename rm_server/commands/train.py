"""`rm-server train`: a version's folder from preference pairs, evaluated on those that were held out."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import add_parser, not_negative, positive
from rm_server.commands.evaluate import assess_folder, print_report, write_figures, write_page

# What computes is imported when it runs: `rm-server --help` must not load torch.
if TYPE_CHECKING:
    from rm_server.backends.interface import ComputeSettings

EVALUATION_PAGE = "evaluation.html"

_HELP = """\
Trains a reward model on preference pairs and writes a version's folder: config, weights (safetensors), tokenizer,
reward_model.json, and training.json with what was done. DATA is JSON Lines, an array of JSON or CSV (.jsonl, .json,
.csv, each with .gz, too), or Parquet, with `prompt`, `chosen`, `rejected` (text, or chat messages); whole conversations
that begin alike, of messages or of text like hh-rlhf's, need no `prompt`. Messages are read by the chat template of the
base's tokenizer, which needs one. Rows with the same `group`, or the same prompt, are never torn apart. The held-out
pairs are evaluated at the end, into evaluation.json and evaluation.html of the folder.
"""

_EXAMPLES = """\
examples:
  rm-server train --data pairs.jsonl.gz --base FacebookAI/roberta-base --out helpful-v1
  rm-server train --data pairs.jsonl.gz --base ./Qwen3-0.6B --out helpful-v2 --precision bf16 --lora-rank 16
  rm-server train --data pairs.jsonl.gz --base ./Qwen3-0.6B --out adapter --lora-rank 16 --keep-adapter
  rm-server train --data pairs.jsonl.gz --base ./MiniLM --out v1 --template pair --truncation keep_start --subset 0.25
  rm-server train ... --resume          go on after an interruption; the weights become the same
"""


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_parser(commands, "train", "makes a version from preference pairs", _HELP, _EXAMPLES)
    parser.set_defaults(run=run_train)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs")
    parser.add_argument("--base", required=True, help="folder or Hugging Face name of an encoder or decoder; "
                        "a head is added where there is none")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="the version's folder, new or empty")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --out, if there is one"
    )

    learning = parser.add_argument_group("learning")
    learning.add_argument("--epochs", type=positive, default=1, help="passes over the pairs (default 1)")
    learning.add_argument("--learning-rate", type=_above_zero, default=5e-5, help="peak, Adam (default 5e-5)")
    learning.add_argument(
        "--warmup-share", type=_share, default=0.1, help="of the steps; then linear to 0 (default 0.1)"
    )
    learning.add_argument("--weight-decay", type=_zero_or_more, default=0.0, help="AdamW's (default 0)")
    learning.add_argument("--batch-size", type=positive, default=16, help="pairs in one step (default 16)")
    learning.add_argument("--accumulation-steps", type=positive, default=1,
                          help="forward passes that the batch is divided into, to save memory (default 1)")  # fmt: skip
    learning.add_argument(
        "--center-coefficient", type=_zero_or_more, default=0.0, help="keeps scores near 0, 0.01 say (default off)"
    )
    learning.add_argument(
        "--dropout", action="store_true", help="as the model's config says (default: none, as in TRL)"
    )
    learning.add_argument(
        "--lora-rank",
        type=not_negative,
        default=0,
        help="train low-rank adapters and merge them (default: all weights)",
    )
    learning.add_argument(
        "--keep-adapter",
        action="store_true",
        help="with --lora-rank: do not merge; save the adapter beside its base, to be served over one copy of it",
    )
    learning.add_argument("--seed", type=int, default=0, help="of head, order and split (default 0)")

    reading = parser.add_argument_group("reading")
    reading.add_argument("--template", help="`pair`, `chat`, or a text with {prompt} and {completion} "
                         "(default: the tokenizer's chat template, else one after the other)")  # fmt: skip
    reading.add_argument("--max-tokens", type=positive, help="longest item (default: what the model allows)")
    reading.add_argument(
        "--truncation", choices=("refuse", "keep_end", "keep_start"), help="of longer items (default refuse)"
    )

    split = parser.add_argument_group("which pairs")
    split.add_argument(
        "--held-out-share", type=_share, default=0.1, help="of the prompts, not trained on (default 0.1)"
    )
    split.add_argument("--split-file", help="JSON with `train` and `held_out`, lists of groups, instead of a share")
    split.add_argument(
        "--subset",
        type=_share_of_something,
        default=1.0,
        help="train on this share of the training prompts (default 1)",
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--precision",
        choices=("fp32", "bf16", "auto"),
        default="fp32",
        help="bf16: mixed; auto: bf16 where the device has instructions for it (default fp32)",
    )
    machine.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU where there is one")
    machine.add_argument("--threads", type=positive, help="CPU threads (default: the library's)")
    machine.add_argument("--gradient-checkpointing", action="store_true", help="less memory, slower")
    machine.add_argument(
        "--checkpoint-steps", type=not_negative, default=0, help="steps between checkpoints (default: each epoch)"
    )
    machine.add_argument("--quiet", action="store_true", help="no progress bar")
    machine.add_argument("--json", action="store_true", help="print training.json instead of a summary")


def run_train(arguments: argparse.Namespace) -> int:
    """Trains, evaluates on the held-out pairs, and says what came of it."""
    import torch

    from rm_server.training.offline_scoring import offline_scorer
    from rm_server.training.registration import EVALUATION_FILE
    from rm_server.training.settings import TrainSettings
    from rm_server.training.trainer import train
    from rm_server.training.wording import count

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = TrainSettings(**{name: getattr(arguments, name) for name in TrainSettings.__dataclass_fields__})
    trained = train(
        arguments.data, arguments.out, settings, resume=arguments.resume, shows_progress=not arguments.quiet
    )
    record = trained.record
    if arguments.json:
        print(json.dumps(record, indent=2))
    else:
        data = record["data"]
        print(
            f"{arguments.out}: {count(record['num_steps'], 'step')} on {count(data['num_pairs'], 'pair')} "
            f"({count(data['num_texts'], 'different text')}, {data['num_truncated']} truncated) of "
            f"{count(data['num_prompts'], 'prompt')} in {record['seconds']:.0f} s."
        )
    if trained.held_out:
        compute = compute_as_trained(record, arguments.threads or 0)
        score = offline_scorer(arguments.out, trained.manifest, compute, shows_progress=not arguments.quiet)
        report = assess_folder(score, arguments.out, trained.manifest, trained.held_out, arguments.data)
        write_figures(arguments.out / EVALUATION_FILE, report)
        write_page(arguments.out / EVALUATION_PAGE, report)
        if not arguments.json:
            print_report(report)
    return 0


def compute_as_trained(record: Mapping[str, Any], num_threads: int) -> ComputeSettings:
    """The device on which training was, by its record; on a GPU its precision, too, as it will be served there."""
    from rm_server.backends.interface import ComputeSettings

    device = record["machine"]["device"]
    if device.startswith("cuda"):
        return ComputeSettings(device=device, precision=record["settings"]["precision"])
    return ComputeSettings(threads=num_threads)


def _above_zero(text: str) -> float:
    return _checked(text, lambda value: 0 < value < math.inf, "a number above 0")


def _zero_or_more(text: str) -> float:
    return _checked(text, lambda value: 0 <= value < math.inf, "a number, 0 or more,")


def _share(text: str) -> float:
    return _checked(text, lambda value: 0 <= value <= 1, "a share from 0 to 1")


def _share_of_something(text: str) -> float:
    return _checked(text, lambda value: 0 < value <= 1, "a share above 0, up to 1,")


def _checked(text: str, is_right: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_right(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not right; {expected} was expected")
    return value
