"""`rm-server register`: a folder, or a model of the Hugging Face hub or of MLflow, becomes a version."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import (
    SHORT_DIGEST,
    CommandError,
    Row,
    add_json_option,
    add_parser,
    add_reason_option,
    print_json,
)
from rm_server.commands.target import add_home_option, add_server_options, home_of, open_server, open_server_or_home
from rm_server.commands.tune import print_tuning, tune
from rm_server.registry.manifest import KINDS_WITHOUT_WEIGHTS
from rm_server.registry.records import version_name

# What computes is imported by the command that needs it: `rm-server --help` must not load torch.
if TYPE_CHECKING:
    from rm_server.training.registration import Registration

_HELP = """\
Takes a folder as the next version of a model: reads or infers its manifest, records golden examples (texts with the
scores that every later load must give again), computes the digest, copies the files, and files calibration and
evaluations with the version. The same content again is the version that it already is. SOURCE is a folder with
config.json, safetensors and a tokenizer, or hf://ORG/NAME@REVISION, or, where MLflow is installed, mlflow:/NAME/VERSION
or mlflow:runs:/RUN/PATH; it is not written to.

With --home all of this happens here; a server that runs on that home sees the version at once. With --server the
server takes a folder of its own machine that has a reward_model.json already, just as it is.
"""

_EXAMPLES = """\
examples:
  rm-server register helpfulness ./helpful-v2 --home models --comment "twice the data"
  rm-server register helpful ./v2 --home models --reference-data held_out.jsonl.gz --match helpful@stable
  rm-server register sentiment hf://org/classifier@v1.0 --home models --label-index positive --max-tokens 256
  rm-server register helpful ./adapter --home models --base qwen-base@1
"""

# Options that say how the version reads its input; they need the weights at hand, and so a home.
_HOME_ONLY = (
    "template",
    "label_index",
    "max_tokens",
    "truncation",
    "append_eos",
    "trim_padding",
    "base",
    "golden_data",
    "reference_data",
    "match",
    "evaluation",
    "tune",
)


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_parser(commands, "register", "takes a folder as the next version of a model", _HELP, _EXAMPLES)
    parser.set_defaults(run=run_register, parser=parser)
    parser.add_argument("model", help="its name; made when it is new")
    parser.add_argument("source", help="a folder, hf://ORG/NAME@REVISION or mlflow:/NAME/VERSION")
    parser.add_argument(
        "--base",
        metavar="BASE",
        help="of an adapter without base/ and base.json: NAME@VERSION of this home, a folder, or "
        "hf://ORG/NAME@REVISION (default: the base_model_name_or_path of its config where that begins with hf://)",
    )
    add_reason_option(parser)

    reading = parser.add_argument_group("how it reads (default: as its reward_model.json says, else inferred)")
    reading.add_argument("--template", help="`pair`, `chat`, or a text with {prompt} and {completion}")
    reading.add_argument("--label-index", metavar="LABEL", help="of a classifier: whose logit is the score (0, name)")
    reading.add_argument("--max-tokens", type=int, help="longest item (default: what model and tokenizer allow)")
    reading.add_argument("--truncation", choices=("refuse", "keep_end", "keep_start"), help="of longer items")
    reading.add_argument("--append-eos", action=argparse.BooleanOptionalAction, help="EOS follows the completion")

    reading.add_argument(
        "--trim-padding",
        action=argparse.BooleanOptionalAction,
        help="cut off pad ids at the end, also where they are the EOS (default: where transformers skips them)",
    )

    filed = parser.add_argument_group("what is recorded and filed with it")
    filed.add_argument(
        "--golden-data", type=Path, metavar="FILE", help="texts for golden examples (default: its own, else built-in)"
    )
    filed.add_argument(
        "--reference-data", type=Path, metavar="FILE", help="texts whose scores get mean 0 and standard deviation 1"
    )
    filed.add_argument(
        "--match", metavar="VERSION", help="model@3 or model@label: put the scores of --reference-data on its scale"
    )
    filed.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        metavar="FILE",
        help="a report of `rm-server evaluate --json FILE`; may be repeated (default: the "
        "folder's evaluation.json, where it is of this content and reading; an adapter's cannot say so)",
    )
    parser.add_argument(
        "--tune", action="store_true", default=None, help="then find how it is computed fastest here, as `tune` does"
    )
    parser.add_argument("--device", default="cpu", help="where golden and reference scores are computed, in fp32")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json_option(parser)
    add_home_option(parser)
    add_server_options(parser)


def run_register(arguments: argparse.Namespace) -> int:
    """Registers here, or has a server do it."""
    if arguments.home is None:
        return _register_on_server(arguments)
    if arguments.server:
        raise CommandError("--home and --server are both given; a server has its own home.")
    from rm_server.registry.home import operating_system_user
    from rm_server.training.registration import Reading, register_folder

    is_new_home = not arguments.home.exists()
    done = register_folder(
        home_of(arguments),
        arguments.model,
        arguments.source,
        actor=operating_system_user(),
        comment=arguments.comment,
        reading=Reading(**{name: getattr(arguments, name) for name in Reading.__dataclass_fields__}),
        base=arguments.base,
        golden_data=arguments.golden_data,
        reference_data=arguments.reference_data,
        match=arguments.match,
        evaluations=arguments.evaluation or (),
        device=arguments.device,
        shows_progress=not arguments.quiet,
    )
    with open_server_or_home(arguments) as home:
        (model,) = home.models(arguments.model)
    row = next(version for version in model["versions"] if version["version"] == done.record.version)
    if not arguments.json:
        print(_summary(row, done.created))
        print("\n".join(_details(done)))
        if is_new_home:  # a slip in the name, perhaps
            print(f"  home       {arguments.home}, made for it")
    has_choices = done.record.kind not in KINDS_WITHOUT_WEIGHTS
    if arguments.tune and not has_choices:
        print(f"rm-server: --tune: a version of the kind {done.record.kind} leaves nothing to choose.", file=sys.stderr)
    tuning = tune(arguments, version_name(done.record.key)) if arguments.tune and has_choices else None
    if arguments.json:
        told = {"tuning": tuning.as_dict()} if tuning else {}
        print_json({**row, "created": done.created, "evaluations": list(done.evaluations), **told})
    elif tuning:
        print_tuning(tuning)
    return 0


def _register_on_server(arguments: argparse.Namespace) -> int:
    given = [f"--{name.replace('_', '-')}" for name in _HOME_ONLY if getattr(arguments, name) is not None]
    if given:
        raise CommandError(
            f"{', '.join(given)}: a server takes a folder as it is. Give --home DIR, the folder that it runs on."
        )
    with open_server(arguments) as server:
        row, created = server.register(arguments.model, Path(arguments.source), arguments.comment)
    if arguments.json:
        print_json({**row, "created": created})
    else:
        print(_summary(row, created))
    return 0


def _summary(row: Row, created: bool) -> str:
    name = f"{row['model']}@{row['version']} ({row['digest'][:SHORT_DIGEST]})"
    # What was damaged has been put right: a server that refused the version loads it when it is told to.
    return f"{name} is registered." if created else f"{name} has this content already; its files are whole."


def _details(done: Registration) -> Iterator[str]:
    reading = done.manifest
    eos = ", EOS appended (if it was trained without: --no-append-eos)" if reading.append_eos else ""
    length = f"up to {reading.max_tokens} tokens, {reading.truncation}" if reading.max_tokens else "of any length"
    pads = ", pad ids at the end cut off" if reading.trim_padding else ""
    how = f"template {reading.template!r}, {length}{eos}{pads}"
    yield f"  reads      {'as each of its parts does' if reading.kind == 'composite' else how}"
    if done.label:
        yield f"  score      the logit of label {done.label}"
    yield f"  golden     {len(reading.golden)} examples, checked at every load"
    if done.calibration is not None:
        calibration = done.calibration
        yield (
            f"  calibrated score = {calibration.gain:.4g} * raw + {calibration.bias:.4g} "
            f"({calibration.method} on {calibration.num_texts} texts)"
        )
    if done.evaluations:
        yield f"  filed      {', '.join(done.evaluations)}"
