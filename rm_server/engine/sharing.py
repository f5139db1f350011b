"""What the items of a batch have in common: adapters over one base, prompts that are computed once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rm_server.backends.items import Batch
from rm_server.backends.shared_prefix import tokens_to_compute
from rm_server.engine.host import LoadReport
from rm_server.engine.work import Work

MIXED_BATCH_TOKENS = 256
"""A batch is filled up to so many tokens with other adapters' items.

A forward has its fixed cost, and so has each adapter in it. Of MiniLM-L6 on one core, eight adapters with an item each
are computed together 3.3 times as fast as one by one where an item has 16 tokens, 2.1 times with 32, 1.5 with 64; with
128, where the fixed cost no longer counts, just as fast.
"""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a version's items share: a batch with versions that say the same, and prompts up to so many tokens."""

    mixes_with: str = ""
    shares_up_to: int = 0

    @classmethod
    def of(cls, reports: Sequence[LoadReport]) -> Sharing:
        """What all workers can do."""
        (mixes_with, *others) = {report.mixes_with for report in reports}
        return cls("" if others else mixes_with, min(report.shares_up_to for report in reports))


NOTHING = Sharing()


def count_once(works: Sequence[Work], sharing: Sharing) -> None:
    """Counts a call's shared prompt as often as it is computed, so that a batch holds as many groups as it can."""
    if len(works) > 1 and sharing.shares_up_to:
        batch = Batch.of([work.item for work in works])
        counts = tokens_to_compute(batch.ids, batch.lengths, sharing.shares_up_to)
        for work, num_tokens in zip(works, counts, strict=True):
            work.num_tokens = num_tokens


def room_for_others(num_tokens: int, max_batch_tokens: int) -> int:
    """How many tokens of others a batch should take in that has ``num_tokens`` of its own; 0: it is worth a forward."""
    return max(0, min(MIXED_BATCH_TOKENS, max_batch_tokens) - num_tokens)
