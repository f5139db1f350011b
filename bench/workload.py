"""What is scored: lengths as in training runs, texts with a known number of tokens, groups over one prompt. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MEDIAN_TOKENS = 180
P95_TOKENS = 600
_P95_QUANTILE = 1.645  # of the standard normal distribution
MIN_TOKENS = 8

GROUP_SIZE = 8
GROUP_PROMPT_TOKENS = 200
GROUP_COMPLETION_TOKENS = (40, 260)


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with a completion. ``num_tokens``: of both together, special tokens included."""

    prompt: str
    completion: str
    num_tokens: int

    @property
    def text(self) -> str:
        """As one text, for servers that know no prompts."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words of one token each, and how long an item may be. ``num_special_tokens``: that the tokenizer adds."""

    words: tuple[str, ...]
    num_special_tokens: int
    max_tokens: int


def lengths(rng: np.random.Generator, num_items: int, max_tokens: int) -> list[int]:
    """Log-normal lengths in tokens, median 180, p95 600, cut at ``max_tokens``."""
    sigma = math.log(P95_TOKENS / MEDIAN_TOKENS) / _P95_QUANTILE
    drawn = rng.lognormal(math.log(MEDIAN_TOKENS), sigma, num_items)
    return [int(length) for length in np.clip(drawn, MIN_TOKENS, max_tokens)]


def items(vocabulary: Vocabulary, num_items: int, seed: int) -> list[Item]:
    """Strangers: no two share more than a word by chance. The first third of an item is its prompt."""
    rng = np.random.default_rng(seed)
    return _strangers(rng, vocabulary, lengths(rng, num_items, min(1024, vocabulary.max_tokens)))


def equal_items(vocabulary: Vocabulary, num_items: int, num_tokens: int, seed: int) -> list[Item]:
    """Strangers that all have ``num_tokens`` tokens."""
    return _strangers(np.random.default_rng(seed), vocabulary, [num_tokens] * num_items)


def _strangers(rng: np.random.Generator, vocabulary: Vocabulary, sizes: Sequence[int]) -> list[Item]:
    found = []
    for num_tokens in sizes:
        words = _words(rng, vocabulary, num_tokens - vocabulary.num_special_tokens)
        split = max(1, len(words) // 3)
        found.append(Item(" ".join(words[:split]), " " + " ".join(words[split:]), num_tokens))
    return found


def groups(vocabulary: Vocabulary, num_groups: int, seed: int) -> list[list[Item]]:
    """Groups of 8 completions of 40 to 260 tokens over one prompt of 200."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_groups):
        prompt = " ".join(_words(rng, vocabulary, GROUP_PROMPT_TOKENS))
        sizes = rng.integers(*GROUP_COMPLETION_TOKENS, GROUP_SIZE, endpoint=True)
        found.append(
            [
                Item(
                    prompt,
                    " " + " ".join(_words(rng, vocabulary, size)),
                    GROUP_PROMPT_TOKENS + int(size) + vocabulary.num_special_tokens,
                )
                for size in sizes
            ]
        )
    return found


def as_strangers(found: Sequence[Sequence[Item]]) -> list[list[Item]]:
    """The same items in calls of the same sizes, so laid out that no two neighbours have the same prompt.

    The number of groups must be a multiple of their size.
    """
    calls = []
    for start in range(0, len(found), GROUP_SIZE):
        block = found[start : start + GROUP_SIZE]
        calls += [[group[place] for group in block] for place in range(GROUP_SIZE)]
    return calls


def token_ratio(found: Sequence[Sequence[Item]]) -> float:
    """Tokens of groups whose prompts are computed for each item, over those where each prompt is computed once."""
    without = sum(item.num_tokens for group in found for item in group)
    # The prompt and the special token before it.
    saved = sum((1 + GROUP_PROMPT_TOKENS) * (len(group) - 1) for group in found)
    return without / (without - saved)


def in_calls(found: Sequence[Item], size: int) -> list[list[Item]]:
    """Calls of ``size`` items; a rest that fills no call is left out."""
    return [list(found[start : start + size]) for start in range(0, len(found) - size + 1, size)]


def arrivals(rng: np.random.Generator, per_s: float, seconds: float) -> Iterator[float]:
    """Times of a Poisson process, in seconds from its start."""
    at = float(rng.exponential(1 / per_s))
    while at < seconds:
        yield at
        at += float(rng.exponential(1 / per_s))


def _words(rng: np.random.Generator, vocabulary: Vocabulary, num_words: int) -> list[str]:
    return [vocabulary.words[index] for index in rng.integers(len(vocabulary.words), size=num_words)]
