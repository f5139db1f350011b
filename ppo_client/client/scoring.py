"""A scoring call: its requests, the items that get a second chance, and one version for all of them."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ppo_client.client.caller import Attempts, Caller
from ppo_client.client.content import Item
from ppo_client.client.errors import NotFound, RewardClientError, VersionChanged, VersionChangedDuringCall
from ppo_client.client.reply import Reply, Source, join, read_reply
from ppo_client.client.score_call import ScoreCall, split
from ppo_client.client.scores import Scores
from ppo_client.client.settings import ClientSettings


@dataclass(slots=True)
class _Part:
    """What one request asks for, and its reply."""

    items: list[Item]
    reply: Reply


class Scorer:
    """Scores whole calls over a Caller."""

    def __init__(self, caller: Caller, settings: ClientSettings) -> None:
        self._caller = caller
        self._settings = settings
        self._request_ids = (f"{uuid.uuid4().hex[:12]}-{number}" for number in itertools.count(1))

    async def score(self, items: Sequence[Item], call: ScoreCall, timeout_s: float) -> Scores:
        """Scores of all items, from one version. Raises RewardClientError.

        A call is sent as one request or several. When a label moved between them, those of the smaller share are sent
        again, pinned to the version of the others (if that one is gone by now: the other way round).
        """
        deadline = self._caller.clock() + timeout_s
        settings = self._settings
        # A call without items is sent, too: the answer says which version would have scored them.
        pieces = list(split(items, max_items=settings.max_items_per_request, max_bytes=settings.max_request_bytes))
        parts = await _all([self._score_part(piece, call, deadline) for piece in pieces or [[]]])
        if len({part.reply.source for part in parts}) > 1:
            parts = await self._agree(parts, call, deadline)
        return join([part.reply for part in parts], num_items=len(items))

    async def _score_part(self, items: list[Item], call: ScoreCall, deadline: float) -> _Part:
        reply = await self._request(items, call, deadline)
        attempts = Attempts(deadline)
        while again := reply.temporary_failures():
            try:
                await self._caller.pause(next(iter(again.values())), attempts)
                pinned = _pinned(call, reply.source)
                second = await self._request([item for item in items if item.place in again], pinned, deadline)
            except RewardClientError:
                break  # the items keep the errors that they have; `join` raises them with the others' scores
            if second.source != reply.source:
                break
            reply = replace(reply, outcomes={**reply.outcomes, **second.outcomes})
        return _Part(items, reply)

    async def _request(self, items: list[Item], call: ScoreCall, deadline: float) -> Reply:
        request = call.request(items, next(self._request_ids))
        response = await self._caller.call(lambda stubs: stubs.scoring.Score, request, deadline, is_hedged=True)
        return read_reply(response, call, items)

    async def _agree(self, parts: list[_Part], call: ScoreCall, deadline: float) -> list[_Part]:
        """The parts with one source for all."""
        shares: Counter[Source] = Counter()
        for part in parts:
            shares[part.reply.source] += len(part.items)

        async def again(part: _Part, source: Source) -> _Part:
            if part.reply.source == source:
                return part
            return await self._score_part(part.items, _pinned(call, source), deadline)

        for source, _ in shares.most_common():
            try:
                agreed = await _all([again(part, source) for part in parts])
            except (NotFound, VersionChanged):
                continue  # unloaded or deleted in the meantime
            if all(part.reply.source == source for part in agreed):
                return agreed
        sources = list(shares)
        raise VersionChangedDuringCall(
            f"the parts of one call for {call.model!r} came from {' and '.join(map(str, sources))}, and could not all "
            f"be had from one of them; repeat the call, or pin it: {sources[0].model}@{sources[0].version}"
        )


def _pinned(call: ScoreCall, source: Source) -> ScoreCall:
    return replace(call, model=f"{source.model}@{source.version}", expected_digest=source.digest)


async def _all(work: Sequence[Coroutine[Any, Any, _Part]]) -> list[_Part]:
    """All results in order, or the first failure; the rest is cancelled then."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
