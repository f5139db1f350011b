"""`rm-server evaluate`: how far a version's scores agree with people's choices, as a table, as JSON and as a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import add_parser, positive
from rm_server.commands.target import add_place_options, opened_home

# What computes is imported when it runs: `rm-server --help` must not load torch.
if TYPE_CHECKING:
    from rm_server.backends.interface import ComputeSettings
    from rm_server.registry.manifest import Manifest
    from rm_server.training.assessment import Report
    from rm_server.training.offline_scoring import ScoreTexts
    from rm_server.training.preferences import Preference
    from rm_server.training.ratings import RatedText

_HELP = """\
Compares a version's scores with people's choices: accuracy, also at equal length and against "the longer wins";
what the scores know beyond length; reliability; agreement with ratings. Prints a table, writes JSON and a page.
"""

_EXAMPLES = """\
examples:
  rm-server evaluate --version-dir helpful-v1 --data held_out.jsonl.gz --out report.html --json report.json
  rm-server evaluate --version-dir v1 --data pairs.jsonl.gz --split-file v1/split.json --ratings ratings.jsonl.gz
  rm-server evaluate --home ./home --model helpfulness@3 --data held_out.jsonl.gz --file
"""


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_parser(commands, "evaluate", "compares a version's scores with people's choices", _HELP, _EXAMPLES)
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
    parser.add_argument("--threads", type=positive, default=0, help="CPU threads (default: the library's)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


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
        report = assess_folder(score, folder, manifest, pairs, arguments.data, ratings=_ratings_of(arguments))
        _give_out(report, arguments)
        return 0
    return _evaluate_in_home(pairs, arguments)


def _evaluate_in_home(pairs: list[Preference], arguments: argparse.Namespace) -> int:
    from rm_server.registry.home import operating_system_user
    from rm_server.registry.lora import folder_with_base
    from rm_server.registry.manifest import read_manifest
    from rm_server.registry.records import version_name
    from rm_server.registry.versions_by_name import find_version
    from rm_server.training.composite_scoring import version_scorer

    with opened_home(arguments, may_be_new=True) as (catalog, artifacts):
        record = find_version(catalog.snapshot(), arguments.model)
        folder = folder_with_base(artifacts, record.digest)
        name, manifest = version_name(record.key), read_manifest(folder)
        compute = _compute_of(arguments)
        score = version_scorer(folder, manifest, artifacts, compute, shows_progress=not arguments.quiet)
        report = assess_folder(
            score, folder, manifest, pairs, arguments.data, ratings=_ratings_of(arguments), name=name
        )
        _give_out(report, arguments)
        if arguments.file:
            filed_as = arguments.name or arguments.data.name.split(".")[0]
            catalog.file_evaluation(record.model, record.version, filed_as, report.to_json(), operating_system_user())
            print(f"Filed with {name} as {filed_as!r}.", file=sys.stderr)
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


def assess_folder(
    score: ScoreTexts,
    folder: Path,
    manifest: Manifest,
    pairs: list[Preference],
    data: Path,
    *,
    ratings: Sequence[RatedText] = (),
    name: str | None = None,
) -> Report:
    """``pairs``: what is evaluated of the file ``data``. ``name``: what the report calls it, if not like the folder."""
    from rm_server.registry.digest import digest_of, hash_file
    from rm_server.registry.layout import BASE_FOLDER
    from rm_server.training.assessment import Subject, assess
    from rm_server.training.trained_prompts import trained_groups

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
        trained_groups=trained_groups(folder, manifest.kind),
    )


def _give_out(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.json == "-":
        print(report.to_json(), end="")
    else:
        print_report(report)
        if arguments.json:
            write_figures(Path(arguments.json), report)
    if arguments.out:
        write_page(arguments.out, report)


def print_report(report: Report) -> None:
    """The table for people."""
    from rm_server.training.report import to_text

    print(to_text(report), end="")


def write_page(path: Path, report: Report) -> None:
    """The page that stands alone."""
    from rm_server.training.report import to_html

    _write(path, to_html(report))


def write_figures(path: Path, report: Report) -> None:
    """What a program reads of it: JSON."""
    _write(path, report.to_json())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
