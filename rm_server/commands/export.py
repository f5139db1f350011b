"""`rm-server export`: a version, or a folder, becomes an ONNX version, and what that changed is told."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import (
    SHORT_DIGEST,
    CommandError,
    add_json_option,
    add_parser,
    add_reason_option,
    print_json,
    short_bytes,
)
from rm_server.commands.target import add_home_option, opened_home
from rm_server.registry.records import version_name

# What computes is imported by the command that needs it: `rm-server --help` must not load torch.
if TYPE_CHECKING:
    from rm_server.training.export import ExportOptions, ExportReport
    from rm_server.training.statistics import Estimate

_HELP = """\
Turns a version into an ONNX version, registered as a new version of the same model: the version itself does not change.
Its scores are compared with the original's before anything is registered, and what was found is filed with it. SOURCE
is model@3 or model@label with --home, or a folder with --out. --int8 computes the backbone in 8-bit integers: smaller,
faster on CPUs that have instructions for it, and less exact; how much less is what the report says. Whether it is
faster than the original on this machine, `rm-server tune` says. Needs the extra `onnx`.
"""

_EXAMPLES = """\
examples:
  rm-server export helpfulness@3 --home models
  rm-server export helpfulness@stable --home models --int8 --data held_out.jsonl.gz
  rm-server export ./helpful-v2 --out ./helpful-v2-onnx
"""


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_parser(commands, "export", "makes an ONNX version of a version", _HELP, _EXAMPLES)
    parser.set_defaults(run=run_export, parser=parser)
    parser.add_argument("source", help="model@3 or model@label of --home, or a folder")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where a folder's ONNX version is written")
    parser.add_argument("--int8", action="store_true", help="8-bit integers in place of fp32")
    parser.add_argument("--opset", type=int, metavar="N", help="of the ONNX operators (default: the exporter's own)")
    parser.add_argument("--data", type=Path, metavar="FILE", help="preference pairs: accuracy before and after")
    parser.add_argument("--reference-data", type=Path, metavar="FILE", help="more texts to compare scores on")
    parser.add_argument(
        "--min-spearman",
        type=float,
        default=0.9,
        metavar="R",
        help="refuse a result whose scores are ordered less alike the original's (default 0.9)",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: the library's)")
    add_reason_option(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json_option(parser)
    add_home_option(parser)


def run_export(arguments: argparse.Namespace) -> int:
    """Exports a version of a home, or a folder."""
    if (arguments.home is None) == (arguments.out is None):
        raise CommandError("Give --home DIR to export one of its versions, or --out FOLDER to export a folder.")
    from rm_server.training.export import ExportOptions

    options = ExportOptions(
        int8=arguments.int8,
        opset=arguments.opset,
        data=arguments.data,
        reference_data=arguments.reference_data,
        min_spearman=arguments.min_spearman,
        threads=arguments.threads,
        shows_progress=not arguments.quiet,
    )
    if arguments.home is None:
        return _export_folder(arguments, options)
    from rm_server.registry.home import operating_system_user
    from rm_server.training.export import export_version

    with opened_home(arguments) as (catalog, artifacts):
        done = export_version(
            catalog,
            artifacts,
            arguments.source,
            options,
            actor=operating_system_user(),
            comment=arguments.comment,
        )
    record = done.record
    if arguments.json:
        print_json({"model": record.model, "version": record.version, "created": done.created, **done.report.as_dict()})
        return 0
    name = f"{version_name(record.key)} ({record.digest[:SHORT_DIGEST]})"
    print(f"{name} is {done.report.source} in ONNX." if done.created else f"{name} has this content already.")
    print("\n".join(_details(done.report)))
    if record.calibration is not None:
        print(f"  calibrated as {done.report.source} is")
    return 0


def _export_folder(arguments: argparse.Namespace, options: ExportOptions) -> int:
    from rm_server.backends.loading import infer_manifest
    from rm_server.registry.manifest import FILE_NAME, read_manifest
    from rm_server.training.export import export_folder

    folder = Path(arguments.source)
    if not folder.is_dir():
        raise CommandError(f"{folder} is no folder; with --out, name the folder of a version or of a checkpoint.")
    manifest = read_manifest(folder) if (folder / FILE_NAME).exists() else infer_manifest(folder)
    _, report = export_folder(folder, manifest, arguments.out, options)
    if arguments.json:
        print_json({"out": str(arguments.out), **report.as_dict()})
    else:
        print(f"{arguments.out} is {report.source} in ONNX.")
        print("\n".join(_details(report)))
    return 0


def _details(report: ExportReport) -> Iterator[str]:
    scores = report.scores
    sizes = f"{short_bytes(report.size_bytes)}, was {short_bytes(report.source_size_bytes)}"
    yield f"  precision  {report.precision}, opset {report.opset}, {sizes}"
    order = "" if scores.spearman is None else f"; Spearman {scores.spearman:.4f}"
    yield (
        f"  scores     of {scores.num_texts} texts: off by up to {scores.max_difference:.2g}, "
        f"{scores.mean_absolute_difference:.2g} on average (standard deviation {scores.score_std:.2g}){order}"
    )
    if report.accuracy is not None:
        accuracy = report.accuracy
        yield (
            f"  accuracy   {accuracy.after.value:.1%}, was {accuracy.before.value:.1%}; difference "
            f"{_points(accuracy.difference)} on {accuracy.num_pairs} pairs, {accuracy.num_changed} of which changed"
        )


def _points(difference: Estimate) -> str:
    interval = difference.interval
    known = "" if interval is None else f" [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"
    return f"{100 * difference.value:+.2f}{known} points"
