"""Raw scores of pairs of prompt and completion by one loaded version: tokens, a turn in the engine, what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rm_server.backends.items import EncodedItem
from rm_server.engine.encoding import Pair
from rm_server.engine.engine import Engine
from rm_server.engine.loaded import LoadedVersion
from rm_server.engine.work import ItemScore
from rm_server.errors import DeadlineExceeded, Draining, RmError, VersionNotLoaded, WorkerFailed
from rm_server.registry.manifest import TruncationRule

_NOTHING_TRIED = (DeadlineExceeded, Draining, WorkerFailed, VersionNotLoaded)
"""Where every item that could be encoded failed like this, nothing was tried and the call fails as a whole."""


class BackgroundDropped(Exception):
    """Background work was given up: callers have too much waiting, or a version that it needs is being unloaded."""


@dataclass(frozen=True, slots=True)
class How:
    """How to score. ``truncation`` None: the version's own rule. ``deadline`` on the event loop's clock.

    ``is_background``: where nobody waits; see `Engine.submit_background`. ``priority`` and ``use_cache`` say nothing
    then, and ``run`` only whose turn it is to become tokens.
    """

    run: str = ""
    truncation: TruncationRule | None = None
    priority: int = 0
    use_cache: bool = True
    deadline: float | None = None
    is_background: bool = False


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a score: ``weight * value`` was added. ``version`` 0: a rule of the version's own."""

    name: str
    value: float
    weight: float
    version: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What became of each pair, in order. ``truncated`` and ``num_tokens`` are those of what could be encoded.

    ``components``: of each pair that has a score; None for versions whose scores have no parts.
    """

    outcomes: list[ItemScore | RmError]
    truncated: list[bool]
    num_tokens: list[int]
    tokenize_s: float
    components: list[tuple[Component, ...]] | None = None


async def evaluate(engine: Engine, version: LoadedVersion, pairs: Sequence[Pair], how: How) -> Evaluated:
    """Scores the pairs with a version that the caller holds. Cancelling drops what is not being computed yet.

    Raises when nothing could be tried: VersionNotLoaded, QueueFull, Draining, WorkerFailed, DeadlineExceeded. In the
    background the caller need not hold the version, and all is given up with the first item: BackgroundDropped.
    """
    started = time.perf_counter()
    if not how.is_background:
        engine.check_room(version.key, how.run, len(pairs))
    encoded = await engine.encode(version.key, pairs, how.truncation, run=how.run, deadline=how.deadline)
    tokenize_s = time.perf_counter() - started
    if how.deadline is not None and asyncio.get_running_loop().time() >= how.deadline:
        raise DeadlineExceeded("The deadline passed before the items had their turn; nothing was computed.")
    futures = _submitted(engine, version, [item for item in encoded if isinstance(item, EncodedItem)], how)
    await _all_done(futures, how.deadline)
    if how.is_background and any(future.cancelled() for future in futures):
        raise BackgroundDropped
    outcomes = _outcomes(encoded, futures)
    return Evaluated(
        outcomes=outcomes,
        truncated=[isinstance(item, EncodedItem) and item.truncated for item in encoded],
        num_tokens=[item.num_tokens if isinstance(item, EncodedItem) else 0 for item in encoded],
        tokenize_s=tokenize_s,
        components=_components(version, outcomes),
    )


def _submitted(
    engine: Engine, version: LoadedVersion, items: Sequence[EncodedItem], how: How
) -> list[asyncio.Future[ItemScore]]:
    if how.is_background:
        return engine.submit_background(version.key, items)
    return engine.submit(
        version.key,
        items,
        run=how.run,
        priority=how.priority,
        deadline=how.deadline,
        use_cache=how.use_cache,
    )


def _components(version: LoadedVersion, outcomes: Sequence[ItemScore | RmError]) -> list[tuple[Component, ...]] | None:
    parts = version.encoder.parts
    if not parts:
        return None
    return [
        tuple(Component(name, value, weight) for (name, weight), value in zip(parts, outcome.parts, strict=False))
        if isinstance(outcome, ItemScore)
        else ()
        for outcome in outcomes
    ]


async def _all_done(futures: Sequence[asyncio.Future[ItemScore]], deadline: float | None) -> None:
    """Waits for all. Cancels those that are not done when the deadline passes, or when nobody waits any more."""
    waiting = [future for future in futures if not future.done()]
    if not waiting:
        return
    try:
        timeout_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
        await asyncio.wait(waiting, timeout=timeout_s)
    finally:
        for future in waiting:
            future.cancel()


def _outcomes(
    encoded: Sequence[EncodedItem | RmError], futures: Sequence[asyncio.Future[ItemScore]]
) -> list[ItemScore | RmError]:
    """What became of each item. Raises where nothing could be tried, or where the deadline passed in between."""
    of_futures = [_outcome(future) for future in futures]
    late = [outcome for outcome in of_futures if isinstance(outcome, DeadlineExceeded)]
    if late:
        raise late[0]
    if of_futures and all(isinstance(outcome, _NOTHING_TRIED) for outcome in of_futures):
        raise next(outcome for outcome in of_futures if isinstance(outcome, RmError))
    of_items = iter(of_futures)
    return [item if isinstance(item, RmError) else next(of_items) for item in encoded]


def _outcome(future: asyncio.Future[ItemScore]) -> ItemScore | RmError:
    if future.cancelled():
        return DeadlineExceeded("The deadline passed before all items of the call were computed.")
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, RmError):
        return error
    raise error
