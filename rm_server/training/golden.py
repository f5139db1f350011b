"""Golden examples: a few items with the scores that a version gave them at registration, checked at every load."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rm_server.backends.interface import Encoder
from rm_server.backends.items import Content, is_ids, is_messages
from rm_server.errors import ConstantOutput, GoldenMismatch, RmError
from rm_server.registry.manifest import KINDS_WITHOUT_WEIGHTS, GoldenExample, Manifest
from rm_server.training.offline_scoring import ScoreTexts
from rm_server.training.reference_texts import Text
from rm_server.training.statistics import FloatArray

NUM_GOLDEN = 16
_NUM_CANDIDATES = 4 * NUM_GOLDEN
# The manifest's default tolerances suit scores of this size; rounding errors grow with the scores.
_USUAL_LARGEST_SCORE = 5.0

logger = logging.getLogger(__name__)


def choose_golden_texts(texts: Sequence[Text], encoder: Encoder, num_texts: int = NUM_GOLDEN) -> list[Text]:
    """Spreads the choice over the data and over the lengths; the same for the same data.

    Left out are texts that the version cannot read, and chats that a manifest cannot hold (more than one turn on a
    side). Fewer than ``num_texts`` when there are no more.
    """
    lengths: dict[Text, int] = {}
    for text in _evenly(texts, _NUM_CANDIDATES):
        plain = _as_plain(text)
        if plain is None:
            continue
        try:
            lengths[plain] = encoder.encode(*plain).num_tokens
        except RmError:
            continue
    return _evenly(sorted(lengths, key=lambda text: lengths[text]), num_texts)


def record_golden(manifest: Manifest, texts: Sequence[Text], score: ScoreTexts) -> Manifest:
    """The manifest with these texts as golden examples and tolerances that suit the size of their scores.

    ``score`` must compute in fp32, one text at a time. Warns where the scores of a network hardly differ. Raises the
    error of a text without a score (NonFiniteScore, say); ConstantOutput when all scores of a network are the same.
    """
    values = _scores(texts, score)
    spread = float(np.ptp(values)) if len(values) else 0.0
    has_weights = manifest.kind not in KINDS_WITHOUT_WEIGHTS
    if len(values) > 1 and has_weights and spread <= 1e-6 * max(1.0, np.abs(values).max()):
        raise ConstantOutput(
            f"The version gives {values[0]:.6g} for each of {len(values)} different texts. "
            "Its head is probably missing, not trained, or zero."
        )
    factor = max(1.0, float(np.abs(values).max(initial=0.0)) / _USUAL_LARGEST_SCORE)
    golden = tuple(_example(text, value) for text, value in zip(texts, values, strict=True))
    usual = Manifest(kind=manifest.kind).tolerance
    if manifest.precision:  # recorded in that one, so what is left is rounding
        usual = {manifest.precision: usual["fp32"]}
    tolerance = {precision: allowed * factor for precision, allowed in usual.items()}
    tightest = min(tolerance.values())
    if len(values) > 1 and has_weights and spread <= tightest:
        logger.warning(
            "The scores of %d different texts differ by %.2g at most. Is the head trained? The check at each load "
            "allows for %.2g, so that it would not notice other scores than these.",
            len(values),
            spread,
            tightest,
        )
    return replace(manifest, golden=golden, tolerance=tolerance)


def check_golden(manifest: Manifest, score: ScoreTexts) -> None:
    """Raises GoldenMismatch when the folder's own golden examples do not get their scores, in fp32 or its precision."""
    values = _scores([(example.prompt, example.completion) for example in manifest.golden], score)
    tolerance = manifest.tolerance.get(manifest.precision or "fp32", 0.0)
    for number, (example, value) in enumerate(zip(manifest.golden, values, strict=True)):
        if not abs(value - example.score) <= tolerance:
            raise GoldenMismatch(
                f"Golden example {number} of the folder should have {example.score:.6g} and got {value:.6g} (tolerance "
                f"{tolerance:g}): weights, tokenizer or template differ from those that recorded it. Register other "
                "golden texts to record new scores, if the change was meant."
            )


def _scores(texts: Sequence[Text], score: ScoreTexts) -> FloatArray:
    values = []
    for scored in score(texts):
        if isinstance(scored.score, RmError):
            raise scored.score
        values.append(scored.score)
    return np.array(values, np.float64)


def _evenly(texts: Sequence[Text], num_texts: int) -> list[Text]:
    num_texts = min(num_texts, len(texts))
    return [texts[index * len(texts) // num_texts] for index in range(num_texts)]


def _as_plain(text: Text) -> tuple[str | tuple[int, ...], str | tuple[int, ...]] | None:
    """As a manifest holds it: text or token ids. One user turn and one assistant turn are what text stands for."""
    prompt, completion = _plain_content(text[0], "user"), _plain_content(text[1], "assistant")
    return None if prompt is None or completion is None else (prompt, completion)


def _plain_content(content: Content, role: str) -> str | tuple[int, ...] | None:
    if is_messages(content):
        return content[0].content if len(content) == 1 and content[0].role == role else None
    return content if isinstance(content, str) or is_ids(content) else None


def _example(text: Text, score: float) -> GoldenExample:
    plain = _as_plain(text)
    if plain is None:
        raise ValueError(f"{text} cannot be a golden example")
    return GoldenExample(prompt=plain[0], completion=plain[1], score=score)
