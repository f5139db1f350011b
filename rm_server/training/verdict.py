"""What an evaluation means, in words: may one trust these scores, and what is to be kept in mind. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rm_server.training.evaluation import BeyondLength, Evaluation
from rm_server.training.statistics import CONFIDENCE, Interval
from rm_server.training.wording import count

FEW_PROMPTS = 30
FEW_LENGTH_MATCHED = 100
STRONG_LENGTH_CORRELATION = 0.5
BAD_CALIBRATION = 0.1
MANY_TRUNCATED = 0.25


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the figures alone do not show.

    ``num_unscored``: pairs that got no score and are not in the figures. ``truncated_share``: of the texts.
    ``num_trained_prompts``: evaluated prompts that the version was trained on, as far as its folder says.
    """

    num_unscored: int = 0
    truncated_share: float = 0.0
    num_trained_prompts: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """``level``: "good", "unclear" or "bad"; a headline, a sentence or two, and cautions."""

    level: str
    headline: str
    text: str
    cautions: tuple[str, ...]


def judge(evaluation: Evaluation, circumstances: Circumstances) -> Verdict:
    """Good: agrees with people more often than chance, and beyond length. Bad: the opposite of either is shown."""
    level, headline = _level(evaluation)
    text = (
        f"On {count(evaluation.num_pairs, 'pair')} of {count(evaluation.num_prompts, 'prompt')} the scores agree with "
        "people's choice in "
        f"{_percent(evaluation.accuracy)}{_percent_interval(evaluation.accuracy_interval)}; always choosing the longer "
        f"completion would agree in {_percent(evaluation.longer_wins_accuracy)}. {_about_length(evaluation)}"
    )
    return Verdict(level, headline, text, tuple(_cautions(evaluation, circumstances)))


def _level(evaluation: Evaluation) -> tuple[str, str]:
    if evaluation.accuracy_interval is None:
        return "unclear", "There is too little data for a judgement."
    direction = _direction_beyond_length(evaluation.beyond_length)
    if evaluation.accuracy_interval[1] < 0.5 or direction < 0:
        return "bad", "The scores go against people's choices."
    if evaluation.accuracy_interval[0] <= 0.5:
        return "unclear", "These pairs do not show that the scores are better than chance."
    if direction == 0:
        return "unclear", "The scores agree with people, but perhaps only because they follow length."
    return "good", "The scores agree with people, and not only because of length."


def _direction_beyond_length(beyond: BeyondLength) -> int:
    """1 or -1 where interval or test exclude 0, else 0.

    Either will do: they are the same in large samples, but the interval fails where nearly every choice is predicted.
    """
    if beyond.interval is not None and not beyond.interval[0] <= 0 <= beyond.interval[1]:
        return 1 if beyond.interval[0] > 0 else -1
    if beyond.t is not None and beyond.p_value is not None and beyond.p_value < 1 - CONFIDENCE:
        return 1 if beyond.t > 0 else -1
    return 0


def _about_length(evaluation: Evaluation) -> str:
    beyond = evaluation.beyond_length
    if beyond.coefficient is not None and beyond.interval is not None:
        shown = f" ({beyond.coefficient:.2f} [{beyond.interval[0]:.2f}, {beyond.interval[1]:.2f}])"
    else:
        shown = ""
    direction = _direction_beyond_length(beyond)
    if direction == 0:
        return f"Whether the score says anything about two equally long completions cannot be told{shown}."
    side = "higher" if direction > 0 else "lower"
    return f"Of two equally long completions people tend to choose the one with the {side} score{shown}."


def _cautions(evaluation: Evaluation, circumstances: Circumstances) -> Iterator[str]:
    if circumstances.num_trained_prompts:
        yield (
            f"{circumstances.num_trained_prompts} of these prompts have the names of prompts that the version was "
            "trained on. If they are the same, the figures are better than they will be on new prompts."
        )
    if circumstances.num_unscored:
        yield (
            f"{count(circumstances.num_unscored, 'pair')} could not be scored (too long, for example); "
            "the figures say nothing about such texts."
        )
    gain = evaluation.gain_interval
    if gain is not None and gain[0] <= 0:
        yield (
            "It is not shown that the scores agree with people more often than always choosing the longer completion: "
            f"the difference is {_points(evaluation.gain_over_longer_wins)} points "
            f"[{_points(gain[0])}, {_points(gain[1])}]."
        )
    curved = evaluation.beyond_length.curved_p_value
    if _direction_beyond_length(evaluation.beyond_length) and (curved is None or curved >= 1 - CONFIDENCE):
        shown = "" if curved is None else f" (p = {curved:.2g})"
        yield (
            "What the score says beyond length may be length all the same: where people's choice may follow any smooth "
            f"curve of length, it is not shown that the score says more{shown}."
        )
    if evaluation.num_prompts < FEW_PROMPTS:
        yield (
            f"Only {count(evaluation.num_prompts, 'prompt')}: intervals from so few are rough, "
            "and other prompts may behave differently."
        )
    if evaluation.num_length_matched < FEW_LENGTH_MATCHED:
        yield (
            f"Only {count(evaluation.num_length_matched, 'pair')} "
            f"{'is' if evaluation.num_length_matched == 1 else 'are'} of about equal length, "
            "so the length-matched accuracy is uncertain."
        )
    correlation = evaluation.length_correlation
    if correlation is not None and abs(correlation) > STRONG_LENGTH_CORRELATION:
        tendency = "longer" if correlation > 0 else "shorter"
        yield (
            f"Differences of scores go with differences of length (correlation {correlation:.2f}): a policy can raise "
            f"its score by writing {tendency} texts. Fix the length, or watch it."
        )
    shorter = evaluation.accuracy_shorter_chosen
    if shorter is not None and shorter.interval is not None and shorter.interval[1] < 0.5:
        yield (
            f"Where people chose the shorter completion the scores agree in {_percent(shorter.value)} only: "
            "there, length wins over what people wanted."
        )
    reliability = evaluation.reliability
    slope = reliability.slope_interval
    # Of few pairs the error is large by chance alone (Bröcker 2012): the slope says whether there is one.
    if reliability.expected_calibration_error > BAD_CALIBRATION and slope is not None and not slope[0] <= 1 <= slope[1]:
        manner = "too sure of themselves" if slope[1] < 1 else "too careful"
        yield (
            f"The scores are {manner}: as probabilities they are off by "
            f"{_percent(reliability.expected_calibration_error)} on average. The ranking is not touched by that."
        )
    if circumstances.truncated_share > MANY_TRUNCATED:
        yield (
            f"{_percent(circumstances.truncated_share)} of the texts are longer than the version reads; "
            "what was cut off did not count."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _percent_interval(interval: Interval | None) -> str:
    return "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
