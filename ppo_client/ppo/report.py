"""One HTML page about a run, from its logs: curves, texts before and after, what to doubt."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ppo_client.ppo.conditions import changes_over, differences
from ppo_client.ppo.errors import DataError
from ppo_client.ppo.run_facts import evaluation_signs, run_facts, signs
from ppo_client.ppo.run_logs import comparison, name_of, read_evaluations, read_logs

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


def write_report(run: Path, page: Path, compared: Sequence[Path]) -> None:
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
        name=name_of(run),
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
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
