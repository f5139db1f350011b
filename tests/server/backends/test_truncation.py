"""Which tokens stay, as tables: s special, t template, p prompt, c completion."""

from __future__ import annotations

import numpy as np
import pytest

from rm_server.backends.tokenization.truncation import kept_tokens
from rm_server.errors import ItemTooLong


def cut(item: str, max_tokens: int, rule: str) -> str:
    """Writes the item with a dot for each token that is cut."""
    tokens = np.array(list(item))
    kept = kept_tokens(tokens == "p", tokens == "c", max_tokens, rule)  # type: ignore[arg-type]
    return "".join(token if stays else "." for token, stays in zip(item, kept, strict=True))


@pytest.mark.parametrize(
    ("item", "max_tokens", "rule", "expected"),
    [
        ("spppcccs", 8, "refuse", "spppcccs"),
        ("spppcccs", 9, "keep_end", "spppcccs"),
        ("spppcccs", 7, "keep_end", "s.ppcccs"),
        ("spppcccs", 5, "keep_end", "s...cccs"),
        ("spppcccs", 4, "keep_end", "s....ccs"),
        ("spppcccs", 3, "keep_end", "s.....cs"),
        ("spppcccs", 7, "keep_start", "spppcc.s"),
        ("spppcccs", 6, "keep_start", "spppc..s"),
        ("stpptccts", 7, "keep_end", "st..tccts"),
        ("stpptccts", 6, "keep_end", "st..t.cts"),
        ("stpptccts", 8, "keep_start", "stpptc.ts"),
        ("pppp", 2, "keep_end", "..pp"),
        ("spps", 3, "keep_end", "s.ps"),
        ("sppsccs", 6, "keep_end", "s.psccs"),
    ],
)
def test_cuts_what_the_rule_says(item: str, max_tokens: int, rule: str, expected: str) -> None:
    assert cut(item, max_tokens, rule) == expected


@pytest.mark.parametrize(
    ("item", "max_tokens", "rule", "says"),
    [
        ("spppcccs", 7, "refuse", "has 8 tokens, the version takes 7"),
        ("spppcccs", 2, "keep_end", "can cut only 5"),
        ("spppcccs", 5, "keep_start", "can cut only 2"),
        ("ssss", 3, "keep_end", "can cut only 0"),
        ("spps", 2, "keep_end", "can cut only 1"),  # special tokens alone are the same for every item
        ("pppp", 3, "keep_start", "can cut only 0"),
    ],
)
def test_refuses_what_cannot_fit(item: str, max_tokens: int, rule: str, says: str) -> None:
    with pytest.raises(ItemTooLong, match=says):
        cut(item, max_tokens, rule)
