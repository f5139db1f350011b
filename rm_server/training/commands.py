"""`rm-server train` and `rm-server evaluate`: their options, and what they print and write."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rm_server.registry.options import add_place_options, home_of
from rm_server.registry.records import version_name

# What computes is imported by the command that needs it: `rm-server --help` must not load torch.
if TYPE_CHECKING:
    from rm_server.backends.interface import ComputeSettings
    from rm_server.registry.manifest import Manifest
    from rm_server.training.assessment import Report
    from rm_server.training.offline_scoring import ScoreTexts
    from rm_server.training.preferences import Preference
    from rm_server.training.ratings import RatedText

Number = TypeVar("Number", int, float)

EVALUATION_PAGE = "evaluation.html"

_TRAIN_HELP = """\
Trains a reward model on preference pairs and writes a version's folder: config, weights (safetensors), tokenizer,
reward_model.json, and training.json with what was done. DATA is JSON Lines, an array of JSON or CSV (.jsonl, .json,
.csv, each with .gz, too), or Parquet, with `prompt`, `chosen`, `rejected` (text, or chat messages); whole conversations
that begin alike, of messages or of text like hh-rlhf's, need no `prompt`. Rows with the same `group`, or the same
prompt, are never torn apart. The held-out pairs are evaluated at the end, into evaluation.json and evaluation.html of
the folder.
"""

_TRAIN_EXAMPLES = """\
examples:
  rm-server train --data pairs.jsonl.gz --base FacebookAI/roberta-base --out helpful-v1
  rm-server train --data pairs.jsonl.gz --base ./Qwen3-0.6B --out helpful-v2 --precision bf16 --lora-rank 16
  rm-server train --data pairs.jsonl.gz --base ./Qwen3-0.6B --out adapter --lora-rank 16 --keep-adapter
  rm-server train --data pairs.jsonl.gz --base ./MiniLM --out v1 --template pair --truncation keep_start --subset 0.25
  rm-server train ... --resume          go on after an interruption; the weights become the same
"""

_EVALUATE_HELP = """\
Compares a version's scores with people's choices: accuracy, also at equal length and against "the longer wins";
what the scores know beyond length; reliability; agreement with ratings. Prints a table, writes JSON and a page.
"""

_EVALUATE_EXAMPLES = """\
examples:
  rm-server evaluate --version-dir helpful-v1 --data held_out.jsonl.gz --out report.html --json report.json
  rm-server evaluate --version-dir v1 --data pairs.jsonl.gz --split-file v1/split.json --ratings ratings.jsonl.gz
  rm-server evaluate --home ./home --model helpfulness@3 --data held_out.jsonl.gz --file
"""


def add_parsers(subparsers: Any) -> None:
    """Adds both commands; each sets ``run``, a function of the parsed arguments that returns the exit status."""
    _add_train(subparsers)
    _add_evaluate(subparsers)


def _add_parser(subparsers: Any, name: str, summary: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser


def _add_train(subparsers: Any) -> None:
    parser = _add_parser(subparsers, "train", "makes a version from preference pairs", _TRAIN_HELP, _TRAIN_EXAMPLES)
    parser.set_defaults(run=run_train)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs")
    parser.add_argument("--base", required=True, help="folder or Hugging Face name of an encoder or decoder; "
                        "a head is added where there is none")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="the version's folder, new or empty")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --out, if there is one"
    )

    learning = parser.add_argument_group("learning")
    learning.add_argument("--epochs", type=_positive_int, default=1, help="passes over the pairs (default 1)")
    learning.add_argument("--learning-rate", type=_positive, default=5e-5, help="peak, Adam (default 5e-5)")
    learning.add_argument(
        "--warmup-share", type=_share, default=0.1, help="of the steps; then linear to 0 (default 0.1)"
    )
    learning.add_argument("--weight-decay", type=_not_negative, default=0.0, help="AdamW's (default 0)")
    learning.add_argument("--batch-size", type=_positive_int, default=16, help="pairs in one step (default 16)")
    learning.add_argument("--accumulation-steps", type=_positive_int, default=1,
                          help="forward passes that the batch is divided into, to save memory (default 1)")  # fmt: skip
    learning.add_argument(
        "--center-coefficient", type=_not_negative, default=0.0, help="keeps scores near 0, 0.01 say (default off)"
    )
    learning.add_argument(
        "--dropout", action="store_true", help="as the model's config says (default: none, as in TRL)"
    )
    learning.add_argument(
        "--lora-rank", type=_count, default=0, help="train low-rank adapters and merge them (default: all weights)"
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
    reading.add_argument("--max-tokens", type=_positive_int, help="longest item (default: what the model allows)")
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
    machine.add_argument("--threads", type=_positive_int, help="CPU threads (default: the library's)")
    machine.add_argument("--gradient-checkpointing", action="store_true", help="less memory, slower")
    machine.add_argument(
        "--checkpoint-steps", type=_count, default=0, help="steps between checkpoints (default: each epoch)"
    )
    machine.add_argument("--quiet", action="store_true", help="no progress bar")
    machine.add_argument("--json", action="store_true", help="print training.json instead of a summary")


def _add_evaluate(subparsers: Any) -> None:
    parser = _add_parser(
        subparsers, "evaluate", "compares a version's scores with people's choices", _EVALUATE_HELP, _EVALUATE_EXAMPLES
    )
    parser.set_defaults(run=run_evaluate)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--version-dir", type=Path, help="a version's folder, or a plain Hugging Face reward model")
    subject.add_argument("--home", type=Path, help="the server's folder; with --model")
    parser.add_argument("--model", help="model@version or model@label in --home")
    add_place_options(parser)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs that training did not see")
    parser.add_argument("--ratings", type=Path, help="rows with prompt, completion, rating")
    parser.add_argument("--split-file", type=Path, help="evaluate only a part of --data, by a split file")
    parser.add_argument("--part", default="held_out", help="which part of the split (default held_out)")
    parser.add_argument("--out", type=Path, help="write the page (HTML) here")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write the figures as JSON here, or print them"
    )
    parser.add_argument("--file", action="store_true", help="file the report with the version in --home")
    parser.add_argument("--name", help="what to file it as (default: the data file's name)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda:0, …")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the weights (default fp32)"
    )
    parser.add_argument("--threads", type=_positive_int, default=0, help="CPU threads (default: the library's)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


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
        report = _assess(score, arguments.out, trained.manifest, trained.held_out, arguments.data)
        _write(arguments.out / EVALUATION_FILE, report.to_json())
        _write_page(arguments.out / EVALUATION_PAGE, report)
        if not arguments.json:
            _print_table(report)
    return 0


def compute_as_trained(record: Mapping[str, Any], num_threads: int) -> ComputeSettings:
    """The device on which training was, by its record; on a GPU its precision, too, as it will be served there."""
    from rm_server.backends.interface import ComputeSettings

    device = record["machine"]["device"]
    if device.startswith("cuda"):
        return ComputeSettings(device=device, precision=record["settings"]["precision"])
    return ComputeSettings(threads=num_threads)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluates a folder, or a version in a home."""
    from rm_server.errors import InvalidRequest

    if arguments.home is not None and not arguments.model:
        raise InvalidRequest("--home needs --model, model@version or model@label.")
    if arguments.home is None and (arguments.model or arguments.file):
        raise InvalidRequest("--model and --file concern a version in --home, which is not given.")
    pairs = _pairs_to_evaluate(arguments)
    if arguments.home is None:
        from rm_server.backends.loading import infer_manifest
        from rm_server.registry.manifest import FILE_NAME, read_manifest
        from rm_server.training.offline_scoring import offline_scorer

        folder = arguments.version_dir
        manifest = read_manifest(folder) if (folder / FILE_NAME).exists() else infer_manifest(folder)
        score = offline_scorer(folder, manifest, _compute_of(arguments), shows_progress=not arguments.quiet)
        report = _assess(score, folder, manifest, pairs, arguments.data, ratings=_ratings_of(arguments))
        _give_out(report, arguments)
        return 0
    return _evaluate_in_home(pairs, arguments)


def _evaluate_in_home(pairs: list[Preference], arguments: argparse.Namespace) -> int:
    from rm_server.registry.home import open_home, operating_system_user
    from rm_server.registry.lora import folder_with_base
    from rm_server.registry.manifest import read_manifest
    from rm_server.registry.versions_by_name import find_version
    from rm_server.training.composite_scoring import version_scorer

    catalog, artifacts = open_home(home_of(arguments))
    try:
        record = find_version(catalog.snapshot(), arguments.model)
        folder = folder_with_base(artifacts, record.digest)
        name, manifest = version_name(record.key), read_manifest(folder)
        compute = _compute_of(arguments)
        score = version_scorer(folder, manifest, artifacts, compute, shows_progress=not arguments.quiet)
        report = _assess(score, folder, manifest, pairs, arguments.data, ratings=_ratings_of(arguments), name=name)
        _give_out(report, arguments)
        if arguments.file:
            filed_as = arguments.name or arguments.data.name.split(".")[0]
            catalog.file_evaluation(record.model, record.version, filed_as, report.to_json(), operating_system_user())
            print(f"Filed with {name} as {filed_as!r}.", file=sys.stderr)
    finally:
        catalog.close()
    return 0


def _pairs_to_evaluate(arguments: argparse.Namespace) -> list[Preference]:
    from rm_server.training.data_files import BadData
    from rm_server.training.preferences import check_covered, read_preferences, read_split, select

    pairs = read_preferences(arguments.data)
    if arguments.split_file is None:
        return pairs
    parts = read_split(arguments.split_file)
    check_covered(pairs, parts, arguments.split_file)
    if arguments.part not in parts:
        raise BadData(f"{arguments.split_file} has no part {arguments.part!r}; it has {', '.join(sorted(parts))}.")
    chosen = select(pairs, parts[arguments.part])
    if not chosen:
        raise BadData(f"No pair of {arguments.data} is in the part {arguments.part!r} of {arguments.split_file}.")
    return chosen


def _compute_of(arguments: argparse.Namespace) -> ComputeSettings:
    from rm_server.backends.interface import ComputeSettings

    return ComputeSettings(device=arguments.device, precision=arguments.precision, threads=arguments.threads)


def _ratings_of(arguments: argparse.Namespace) -> Sequence[RatedText]:
    from rm_server.training.ratings import read_ratings

    return read_ratings(arguments.ratings) if arguments.ratings else ()


def _assess(
    score: ScoreTexts,
    folder: Path,
    manifest: Manifest,
    pairs: list[Preference],
    data: Path,
    *,
    ratings: Sequence[RatedText] = (),
    name: str | None = None,
) -> Report:
    from rm_server.registry.digest import digest_of, hash_file
    from rm_server.registry.layout import BASE_FOLDER
    from rm_server.training.assessment import Subject, assess
    from rm_server.training.preferences import SPLIT_FILE, read_split

    split_file = folder / SPLIT_FILE
    return assess(
        score,
        Subject(
            name=name or folder.name,
            # An adapter's digest names its base by version: there is none before both are registered.
            digest="" if (folder / BASE_FOLDER).is_dir() else digest_of(folder, manifest),
            data=data.name,
            data_sha256=hash_file(data)[1],
        ),
        pairs,
        ratings=ratings,
        trained_groups=read_split(split_file)["train"] if split_file.exists() else (),
    )


def _give_out(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.json == "-":
        print(report.to_json(), end="")
    else:
        _print_table(report)
        if arguments.json:
            _write(Path(arguments.json), report.to_json())
    if arguments.out:
        _write_page(arguments.out, report)


def _print_table(report: Report) -> None:
    from rm_server.training.report import to_text

    print(to_text(report), end="")


def _write_page(path: Path, report: Report) -> None:
    from rm_server.training.report import to_html

    _write(path, to_html(report))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _positive_int(text: str) -> int:
    return _checked(text, int, lambda value: value >= 1, "a whole number above 0")


def _count(text: str) -> int:
    return _checked(text, int, lambda value: value >= 0, "a whole number, 0 or more,")


def _positive(text: str) -> float:
    return _checked(text, float, lambda value: 0 < value < math.inf, "a number above 0")


def _not_negative(text: str) -> float:
    return _checked(text, float, lambda value: 0 <= value < math.inf, "a number, 0 or more,")


def _share(text: str) -> float:
    return _checked(text, float, lambda value: 0 <= value <= 1, "a share from 0 to 1")


def _share_of_something(text: str) -> float:
    return _checked(text, float, lambda value: 0 < value <= 1, "a share above 0, up to 1,")


def _checked(text: str, read: Callable[[str], Number], is_right: Callable[[Number], bool], expected: str) -> Number:
    try:
        value = read(text)
    except ValueError:
        value = None
    if value is None or not is_right(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not right; {expected} was expected")
    return value
