"""What a version must show before it serves: golden scores, finite scores, and scores that differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rm_server.backends.interface import Encoder
from rm_server.backends.items import Content, EncodedItem, Float64Array
from rm_server.errors import ConstantOutput, GoldenMismatch, NonFiniteScore, RmError
from rm_server.registry.manifest import KINDS_WITHOUT_WEIGHTS, Manifest
from rm_server.registry.records import VersionKey, version_name

SMALLEST_SPREAD = 1e-6
"""Scores that lie closer together than this, relative to their size where that is above 1, are all the same."""

ROUNDING_SHARE = 0.01
"""Golden scores that are off by less than this share of their spread may be off by rounding alone."""
_ROUNDING_HINT = (
    " So small a difference may also be rounding, which another machine or way of computing does differently: try "
    "--set engine.prepack=false, or --set engine.deterministic=true."
)

# Unlike one another in length, language, form and content, so that a head that works tells some of them apart.
_TEXT_PROBES: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "Paris."),
    ("What is the capital of France?", "I do not know, and I do not care. Go away!"),
    (
        "Tell me a story.",
        "Once upon a time there was a fox who could count to seven. One day she met the number eight.",
    ),
    ("def add(a, b):", "    return a + b"),
    ("Wie spät ist es?", "Es ist 12:45 Uhr, glaube ich."),
    ("", "zzzz zzzz zzzz zzzz"),
)
_ID_PROBES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((3, 5, 7), (4,)),
    ((6, 2, 9, 9), (1, 2, 3, 4, 5, 6, 7, 8)),
    ((2,), (8, 8, 8)),
    ((5, 6), (7, 3)),
)


@dataclass(frozen=True, slots=True)
class Probes:
    """The items that a version is tried on: its golden examples first, with their scores, then ours."""

    items: tuple[EncodedItem, ...]
    golden_scores: tuple[float, ...]


def probes_of(encoder: Encoder, manifest: Manifest) -> Probes:
    """Encodes golden examples and probes. Raises GoldenMismatch for a golden example that cannot be encoded.

    A composite's golden scores are not its own rules' alone: its trial checks them, with all of its parts.
    """
    items: list[EncodedItem] = []
    golden = () if manifest.kind == "composite" else manifest.golden
    for number, example in enumerate(golden):
        try:
            items.append(encoder.encode(example.prompt, example.completion))
        except RmError as error:
            raise GoldenMismatch(f"Golden example {number} cannot be encoded: {error.message}") from error
    probes = _encoded(encoder, _TEXT_PROBES) or _encoded(encoder, _ID_PROBES)
    return Probes((*items, *probes), tuple(example.score for example in golden))


def check(key: VersionKey, manifest: Manifest, precision: str, probes: Probes, scores: Float64Array) -> None:
    """Raises NonFiniteScore, GoldenMismatch or ConstantOutput. ``scores`` has shape (len(probes.items),)."""
    name = version_name(key)
    num_bad = int(np.count_nonzero(~np.isfinite(scores)))
    if num_bad:
        raise NonFiniteScore(
            f"{name} gives NaN or an infinity for {num_bad} of {len(scores)} trial items; it is not loaded. "
            "Look for NaN in its weights, or load it in a wider precision."
        )
    check_golden(name, manifest, precision or "fp32", probes.golden_scores, scores[: len(probes.golden_scores)])
    if manifest.kind not in KINDS_WITHOUT_WEIGHTS and len({item.ids.tobytes() for item in probes.items}) > 1:
        spread = float(scores.max() - scores.min())
        if spread <= SMALLEST_SPREAD * max(1.0, float(np.abs(scores).max())):
            raise ConstantOutput(
                f"{name} gives {scores[0]:.6g} for each of {len(scores)} different trial items; it is not loaded. "
                "Its head is probably missing, not trained, or zero."
            )


def check_golden(
    name: str, manifest: Manifest, precision: str, expected: tuple[float, ...], scores: Float64Array
) -> None:
    """Raises GoldenMismatch where a score is further from what was expected than the manifest tolerates."""
    if not expected:
        return
    tolerance = manifest.tolerance.get(precision)
    if tolerance is None:
        raise GoldenMismatch(
            f"{name}: its manifest has golden examples and no tolerance for {precision}; "
            f"add `tolerance.{precision}` and register it again, or load it in "
            f"{', '.join(manifest.tolerance) or 'no precision'}."
        )
    differences = np.abs(scores - np.array(expected))
    worst = int(differences.argmax())
    if differences[worst] > tolerance:
        num_off = int(np.count_nonzero(differences > tolerance))
        is_small = differences[worst] < ROUNDING_SHARE * np.ptp(expected)
        raise GoldenMismatch(
            f"{name}: {num_off} of {len(expected)} golden examples are off by more than {tolerance:g} in {precision}; "
            f"example {worst} should have {expected[worst]:.6g} and got {scores[worst]:.6g}. It is not loaded: "
            "weights, tokenizer or template differ from those that recorded the golden scores. (If these are wrong: "
            "register it again, with others.)" + (_ROUNDING_HINT if is_small else "")
        )


def _encoded(encoder: Encoder, probes: tuple[tuple[Content, Content], ...]) -> tuple[EncodedItem, ...]:
    """Those that this version can read; a version may know no text, or no token ids of this size."""
    items = []
    for prompt, completion in probes:
        try:
            items.append(encoder.encode(prompt, completion))
        except RmError:
            continue
    return tuple(items)
