"""Whether one version agrees with people less often than another, beyond chance: an exact test on the same pairs. Pure.

Where every pair is of a prompt of its own this is McNemar's test in its exact form (McNemar 1947, "Note on the sampling
error of the difference between correlated proportions": the sign test on the pairs that only one version gets right).
Pairs of one prompt are not independent, so the signs that are turned at random are those of whole prompts (Fisher 1935,
"The Design of Experiments", section 21; Pitman 1937): under the hypothesis that neither version is better, a prompt's
difference is as likely as its opposite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MAX_EXACT_STEPS = 20_000
"""Up to such a sum of differences all signs are gone through; beyond it the normal distribution is as good."""


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two versions on the same pairs. Shares are of pairs on which the scores agree with people; a tie counts half.

    ``num_won``, ``num_lost``: pairs on which the new version does better or worse. ``p_value``: two-sided, of so large
    a difference by chance alone.
    """

    num_pairs: int
    num_prompts: int
    num_won: int
    num_lost: int
    share: float
    present_share: float
    p_value: float


def compare(margins: Mapping[str, float], present_margins: Mapping[str, float]) -> PairedComparison | None:
    """Compares by the pairs that both have; None: there are none.

    Margins are scores of the chosen minus of the rejected completion, by ``PROMPT/PAIR`` (see the reports of
    `rm-server evaluate`).
    """
    # By the pair alone: what counts as one prompt may depend on what else is in the file.
    present_by_pair = {_pair_of(key): margin for key, margin in present_margins.items()}
    pairs = sorted(key for key in margins if _pair_of(key) in present_by_pair)
    if not pairs:
        return None
    # In half pairs, so that a tie is a whole number, too.
    hits = {key: (_doubled_hit(margins[key]), _doubled_hit(present_by_pair[_pair_of(key)])) for key in pairs}
    by_prompt: dict[str, int] = {}
    for key, (new, present) in hits.items():
        prompt = key.partition("/")[0]
        by_prompt[prompt] = by_prompt.get(prompt, 0) + new - present
    return PairedComparison(
        num_pairs=len(pairs),
        num_prompts=len(by_prompt),
        num_won=sum(new > present for new, present in hits.values()),
        num_lost=sum(new < present for new, present in hits.values()),
        share=sum(new for new, _ in hits.values()) / 2 / len(pairs),
        present_share=sum(present for _, present in hits.values()) / 2 / len(pairs),
        p_value=sign_flip_p_value(list(by_prompt.values())),
    )


def sign_flip_p_value(differences: Sequence[int]) -> float:
    """How probable a sum at least as far from 0 is when each difference has either sign with probability ½."""
    steps = [abs(difference) for difference in differences if difference]
    if not steps:
        return 1.0
    unit = math.gcd(*steps)
    steps = [step // unit for step in steps]
    total, observed = sum(steps), abs(sum(differences)) // unit
    if total > MAX_EXACT_STEPS:
        # One less: the sums are two apart.
        spread = math.sqrt(sum(step * step for step in steps))
        return math.erfc(max(observed - 1, 0) / spread / math.sqrt(2))
    # probabilities[k]: of the steps with a plus sign adding up to k; the sum is 2k - total then.
    probabilities = np.zeros(total + 1)
    probabilities[0] = 1.0
    for step in steps:
        probabilities *= 0.5
        probabilities[step:] += probabilities[:-step].copy()
    sums = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(probabilities[sums >= observed].sum()))


def _pair_of(key: str) -> str:
    return key.rpartition("/")[2]


def _doubled_hit(margin: float) -> int:
    return (margin > 0) - (margin < 0) + 1
