"""`ppo-client report`: one HTML page about a run, from its logs: curves, texts before and after, what to doubt."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from ppo_client.ppo.conditions import changes_over, differences
from ppo_client.ppo.errors import DataError
from ppo_client.ppo.evaluation_facts import EvaluationFacts
from ppo_client.ppo.rows import read_rows
from ppo_client.ppo.run_facts import evaluation_signs, run_facts, signs

_EXAMPLES = """examples:
  ppo-client report runs/a                     writes runs/a/report.html
  ppo-client report runs/a --output a.html
  ppo-client report runs/a --compare runs/b runs/dpo.json
                                               beside other runs, and what `ppo-client evaluate --json` wrote
  ppo-client report runs/a --json              the numbers alone
"""

# Curves: name in metrics.jsonl, label with unit.
_CURVES = (
    ("score_mean", "mean score"),
    ("kl", "KL from the reference (nats per episode)"),
    ("entropy", "entropy (nats per token)"),
    ("response_tokens_mean", "tokens per response"),
    ("eos_rate", "responses that end by themselves (share)"),
    ("clip_fraction", "clipped tokens (share)"),
    ("explained_variance", "explained variance of the critic"),
    ("gradient_norm", "gradient norm"),
    ("reward_wait_s", "waiting for scores (s per step)"),
)
_NUM_TEXTS = 5
_INK, _BESIDE, _MARK = "#1f5fa8", "#8a8a8a", "#b0413e"
_FEW = 30


# Curves of the evaluations: name in evaluations.jsonl, the reference's beside it if it has one, label with unit.
_EVALUATION_CURVES = (
    ("score_mean", "reference_score_mean", "held-out: mean score by the training reward"),
    ("judge_mean", "reference_judge_mean", "held-out: mean score by the second opinion"),
    ("win_rate", None, "held-out: win rate against the reference"),
    ("kl", None, "held-out: KL from the reference (nats per episode)"),
)


def write_report(run: Path, page: Path, compared: Sequence[Path] = ()) -> None:
    """Writes one self-contained page. Raises DataError where the run has logged no step."""
    # For the report alone.
    from jinja2 import Environment, StrictUndefined

    rows, samples = read_logs(run)
    evaluations = read_evaluations(run)
    facts = run_facts(rows)
    beside = comparison([run, *compared]) if evaluations or compared else []
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    text = template.render(
        name=_name_of(run),
        facts=facts,
        curves=[_curve(rows, name, label, facts.switch_steps) for name, label in _CURVES],
        evaluation_curves=_evaluation_curves(evaluations, facts.switch_steps),
        evaluation_changes=changes_over(evaluations),
        signs=[*signs(samples), *evaluation_signs(evaluations)],
        texts=_before_and_after(samples, evaluations),
        compared=beside,
        differences=differences(beside),
    )
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{page} cannot be written: {error}") from error


def read_logs(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of metrics.jsonl and samples.jsonl; the latter may be missing."""
    rows = _rows(run / "metrics.jsonl")
    if not rows:
        raise DataError(f"{run / 'metrics.jsonl'} is empty: the run has made no step yet")
    samples = run / "samples.jsonl"
    return rows, _rows(samples) if samples.exists() else []


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """The rows of evaluations.jsonl; empty where the run was not evaluated."""
    path = run / "evaluations.jsonl"
    return _rows(path) if path.exists() else []


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def comparison(places: Sequence[Path]) -> list[dict[str, Any]]:
    """One row for each run (its last evaluation) or file of `ppo-client evaluate --json`. Raises DataError."""
    names = [_name_of(place) for place in places]
    named = [name if names.count(name) == 1 else str(place) for name, place in zip(names, places, strict=True)]
    return [{"name": name, **_evaluation_of(place)} for name, place in zip(named, places, strict=True)]


def _name_of(place: Path) -> str:
    return place.resolve().name if place.is_dir() else place.stem


def _evaluation_of(place: Path) -> dict[str, Any]:
    if place.is_dir():
        if not (evaluations := read_evaluations(place)):
            raise DataError(
                f"{place} was never evaluated, so there is nothing to compare: evaluate its policy with "
                "`ppo-client evaluate --json`, and name that file"
            )
        return evaluations[-1]
    try:
        found: Any = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read: {error}") from error
    if not isinstance(found, dict) or not {item.name for item in fields(EvaluationFacts)} <= found.keys():
        raise DataError(f"{place} is not what `ppo-client evaluate --json` writes")
    return found


def _curve(rows: Sequence[Mapping[str, Any]], name: str, label: str, switch_steps: Sequence[int]) -> str:
    return _svg(label, [([row["step"] for row in rows], [row[name] for row in rows], "")], switch_steps)


def _evaluation_curves(rows: Sequence[Mapping[str, Any]], switch_steps: Sequence[int]) -> list[str]:
    if not rows:
        return []
    steps = [row["step"] for row in rows]
    found = []
    for name, reference, label in _EVALUATION_CURVES:
        lines = [(steps, [row[name] for row in rows], "policy")]
        if reference is not None:
            lines.append((steps, [row[reference] for row in rows], "reference"))
        bounds = None
        if name == "win_rate":
            bounds = [row["win_rate_low"] for row in rows], [row["win_rate_high"] for row in rows]
        found.append(_svg(label, lines, switch_steps, bounds))
    return found


def _svg(
    label: str,
    lines: Sequence[tuple[Sequence[int], Sequence[float], str]],
    switch_steps: Sequence[int],
    bounds: tuple[Sequence[float], Sequence[float]] | None = None,
) -> str:
    """Lines of steps, values and a name; where another version answered first there is a vertical line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.4, 2.5), layout="constrained")
    axes = figure.subplots()
    for (steps, values, name), colour in zip(lines, (_INK, _BESIDE), strict=False):
        axes.plot(steps, values, color=colour, label=name, marker="." if len(steps) < _FEW else None)
    if bounds is not None:
        axes.fill_between(lines[0][0], *bounds, color=_INK, alpha=0.15, linewidth=0)
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)
    for step in switch_steps:
        axes.axvline(step, color=_MARK, linestyle="--", linewidth=1)
    axes.set_xlabel("PPO step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(label, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def _before_and_after(
    samples: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Texts of the reference and of the policy on the same held-out prompts, where the run was evaluated.

    Else of the first and of the last step that has some; not of the same prompts, for each step has its own.
    """
    if evaluations and (texts := evaluations[-1]["texts"]):
        pairs = [
            ({**row["reference"], "prompt": row["prompt"]}, {**row["policy"], "prompt": row["prompt"]}) for row in texts
        ]
        return {"before": "reference", "after": f"policy after step {evaluations[-1]['step']}", "pairs": pairs}
    if not samples:
        return None
    steps = [row["step"] for row in samples]
    first = [row for row in samples if row["step"] == steps[0]][:_NUM_TEXTS]
    last = [row for row in samples if row["step"] == steps[-1]][:_NUM_TEXTS]
    return {
        "before": f"step {steps[0]}",
        "after": f"step {steps[-1]}",
        "pairs": list(zip(first, last, strict=False)),
    }


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="an HTML page about a run",
        description="Curves, texts before and after, and what to doubt, from a run's logs; also while it goes on.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_directory", type=Path, help="output directory of the run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the run's directory")
    parser.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        default=[],
        metavar="PLACE",
        help="other runs that were evaluated, or files of `ppo-client evaluate --json`: one row each in a table",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, and write no page")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.json:
        rows, samples = read_logs(args.run_directory)
        evaluations = read_evaluations(args.run_directory)
        all_signs = [*signs(samples), *evaluation_signs(evaluations)]
        found = [{"name": sign.name, "first": sign.first, "last": sign.last} for sign in all_signs]
        compared = comparison([args.run_directory, *args.compare]) if evaluations or args.compare else []
        for row in compared:
            row.pop("texts", None)
        beside = {
            "evaluation_changes": changes_over(evaluations),
            "compared": compared,
            "differences": differences(compared),
        }
        print(json.dumps({**run_facts(rows).to_dict(), "signs": found, **beside}, indent=2))
        return 0
    page = args.output or args.run_directory / "report.html"
    write_report(args.run_directory, page, args.compare)
    print(f"wrote {page}", file=sys.stderr)
    return 0
