"""Which tokens of an item that is too long are cut. Pure: masks in, mask out."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rm_server.errors import ItemTooLong
from rm_server.registry.manifest import TruncationRule

BoolArray: TypeAlias = npt.NDArray[np.bool_]


def kept_tokens(in_prompt: BoolArray, in_completion: BoolArray, max_tokens: int, rule: TruncationRule) -> BoolArray:
    """Says which tokens stay so that at most ``max_tokens`` do.

    ``in_prompt`` and ``in_completion``, shape (num_tokens,), mark the tokens that may be cut; all others (special
    tokens, EOS, the template's own words) stay. ``keep_end`` cuts the beginning of the prompt, then the beginning of
    the completion; ``keep_start`` cuts the end of the completion. Some of the completion always stays: a score that
    saw none of it would be no score.

    Raises ItemTooLong when the rule is ``refuse`` or the rest cannot fit.
    """
    excess = len(in_prompt) - max_tokens
    if excess <= 0:
        return np.ones(len(in_prompt), np.bool_)
    if rule == "refuse":
        raise ItemTooLong(
            f"The item has {len(in_prompt)} tokens, the version takes {max_tokens}; "
            "shorten it, or ask for truncation (keep_end or keep_start)."
        )
    completion = np.flatnonzero(in_completion)
    candidates = np.concatenate([np.flatnonzero(in_prompt), completion]) if rule == "keep_end" else completion[::-1]
    # The last candidate stays: a token of the completion, or of the prompt where that has none (white space only).
    num_removable = len(candidates) - 1
    if excess > num_removable:
        raise ItemTooLong(
            f"The item has {len(in_prompt)} tokens, the version takes {max_tokens}, and {rule} can cut only "
            f"{max(num_removable, 0)} of them: special tokens, the template"
            + ("" if rule == "keep_end" else ", the prompt")
            + " and one token of the completion must stay."
        )
    kept = np.ones(len(in_prompt), np.bool_)
    kept[candidates[:excess]] = False
    return kept
