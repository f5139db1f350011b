"""Answers of a scorer that can be written by hand, and a scorer that gives them."""

from __future__ import annotations

from rm_server.errors import RmError
from rm_server.scoring.scorer import ItemAnswer, ScoreAnswer, Timings

DIGEST = "d" * 64


def answer(*outcomes: float | RmError, model: str = "m", version: int = 1) -> ScoreAnswer:
    """An answer with these scores and errors; each item has 7 tokens."""
    return ScoreAnswer(
        model=model,
        version=version,
        digest=DIGEST,
        label="stable",
        transform="raw_logit",
        calibration=None,
        items=[
            ItemAnswer(None, outcome, False, 7, ())
            if isinstance(outcome, RmError)
            else ItemAnswer(outcome, None, False, 7, ())
            for outcome in outcomes
        ],
        timings=Timings(0.001, 0.002, 0.003, 0.006),
        arm=None,
    )
