"""`ppo-client report`: one HTML page about a run, from its logs: curves, texts before and after, what to doubt."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ppo_client.ppo.errors import DataError
from ppo_client.ppo.prompts import read_rows
from ppo_client.ppo.run_facts import run_facts, signs

_EXAMPLES = """examples:
  ppo-client report runs/a                     writes runs/a/report.html
  ppo-client report runs/a --output a.html
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
_INK, _MARK = "#1f5fa8", "#b0413e"


def write_report(run: Path, page: Path) -> None:
    """Writes one self-contained page. Raises DataError where the run has logged no step."""
    # For the report alone.
    from jinja2 import Environment, StrictUndefined

    rows, samples = read_logs(run)
    facts = run_facts(rows)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    page.write_text(
        template.render(
            name=run.name,
            facts=facts,
            curves=[_curve(rows, name, label, facts.switch_steps) for name, label in _CURVES],
            signs=signs(samples),
            texts=_before_and_after(samples),
        ),
        encoding="utf-8",
    )


def read_logs(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of metrics.jsonl and samples.jsonl; the latter may be missing."""
    rows = list(read_rows(run / "metrics.jsonl"))
    if not rows:
        raise DataError(f"{run / 'metrics.jsonl'} is empty: the run has made no step yet")
    samples = run / "samples.jsonl"
    return rows, list(read_rows(samples)) if samples.exists() else []


def _curve(rows: Sequence[Mapping[str, Any]], name: str, label: str, switch_steps: Sequence[int]) -> str:
    """An SVG; where another version answered first there is a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["step"] for row in rows], [row[name] for row in rows], color=_INK)
    for step in switch_steps:
        axes.axvline(step, color=_MARK, linestyle="--", linewidth=1)
    axes.set_xlabel("PPO step")
    axes.set_title(label, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def _before_and_after(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Texts of the first and of the last step that has some; not of the same prompts, for each step has its own."""
    if not samples:
        return []
    steps = [row["step"] for row in samples]
    first = [row for row in samples if row["step"] == steps[0]][:_NUM_TEXTS]
    last = [row for row in samples if row["step"] == steps[-1]][:_NUM_TEXTS]
    return [{"before": before, "after": after} for before, after in zip(first, last, strict=False)]


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
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, and write no page")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.json:
        rows, samples = read_logs(args.run_directory)
        found = [{"name": sign.name, "first": sign.first, "last": sign.last} for sign in signs(samples)]
        print(json.dumps({**run_facts(rows).to_dict(), "signs": found}, indent=2))
        return 0
    page = args.output or args.run_directory / "report.html"
    write_report(args.run_directory, page)
    print(f"wrote {page}", file=sys.stderr)
    return 0
