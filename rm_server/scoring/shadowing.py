"""Shadows: a share of the calls is scored by another version, too, beside the callers, and the scores are paired."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Protocol

from rm_server.backends.items import ChatMessage, Content, has_ids
from rm_server.engine.encoding import Pair
from rm_server.engine.engine import Engine
from rm_server.engine.loaded import LoadedVersion
from rm_server.engine.tasks import Tasks
from rm_server.engine.versions import VersionManager
from rm_server.errors import QueueFull, RmError, VersionNotLoaded
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.records import Shadow, Snapshot, VersionKey, version_name
from rm_server.registry.shadows import ShadowPair
from rm_server.registry.vocabulary import read_vocabulary_digest
from rm_server.scoring.composites import Composites, composite_of
from rm_server.scoring.evaluation import BackgroundDropped, Evaluated, How, evaluate
from rm_server.scoring.routing import Route
from rm_server.scoring.scorer import ScoreCall
from rm_server.scoring.shadow_pairs import PairBuffer

OK = "ok"
COMPOSITE = "composite"
ENCODING_TURN = "the shadows"
"""Shadows take one turn among the runs whose texts become tokens. No run can have this name: it has a space."""

_log = logging.getLogger(__name__)


class ShadowMetrics(Protocol):
    """What is counted here; see rm_server/metrics."""

    def shadow_items(self, key: VersionKey, outcome: str, num_items: int) -> None: ...
    def shadow_dropped(self, key: VersionKey, reason: str, num_items: int) -> None: ...


class Dropped(Exception):
    """A call is not compared; ``reason`` is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_in_share(request_id: str, key: VersionKey, share: float) -> bool:
    """Whether a shadow scores the call of this id, too: the same call always, each shadow its own share of them."""
    digest = blake2b(f"{version_name(key)}|{request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


class Shadowing:
    """Lives on the engine's event loop. Nobody waits for what is done here, and nothing of it is answered."""

    def __init__(
        self,
        engine: Engine,
        composites: Composites,
        get_snapshot: Callable[[], Snapshot],
        vocabulary_of: Callable[[VersionKey], Awaitable[str]],
        keep: Callable[[Sequence[ShadowPair]], None],
        metrics: ShadowMetrics,
        *,
        log_texts: bool = False,
    ) -> None:
        """``vocabulary_of``: a digest; where two versions have the same, token ids mean the same to them."""
        self._engine = engine
        self._composites = composites
        self._get_snapshot = get_snapshot
        self._vocabulary_of = vocabulary_of
        self._keep = keep
        self._metrics = metrics
        self._log_texts = log_texts
        self._tasks = Tasks()
        self._num_items = 0

    def scored(self, call: ScoreCall, route: Route, scores: Sequence[float | None]) -> None:
        """A call was answered by ``route``. ``scores``: raw, one for each completion in order; None: it failed."""
        shadows = self._get_snapshot().shadows
        if not shadows:
            return
        request_id = call.request_id or secrets.token_hex(8)
        for shadow in shadows.values():
            is_beside = shadow.model == route.key[0] and shadow.key != route.key
            if is_beside and is_in_share(request_id, shadow.key, shadow.share):
                self._begin(call, route, scores, shadow)

    async def stop(self) -> None:
        """Gives up what is under way."""
        await self._tasks.cancel()

    def _begin(self, call: ScoreCall, route: Route, scores: Sequence[float | None], shadow: Shadow) -> None:
        num_items = sum(score is not None for score in scores)
        if not num_items:
            return
        # Before anything is tokenised: that takes time from the callers, too.
        if self._engine.is_crowded:
            self._metrics.shadow_dropped(shadow.key, "overload", num_items)
        elif self._num_items and self._num_items + num_items > self._engine.settings.max_background_items:
            self._metrics.shadow_dropped(shadow.key, "queue_full", num_items)
        else:
            self._num_items += num_items
            self._tasks.spawn(self._compare(call, route.key, scores, shadow.key, num_items))

    async def _compare(
        self,
        call: ScoreCall,
        key: VersionKey,
        scores: Sequence[float | None],
        shadow_key: VersionKey,
        num_items: int,
    ) -> None:
        try:
            await self._score(call, key, scores, shadow_key)
        except Dropped as dropped:
            self._metrics.shadow_dropped(shadow_key, dropped.reason, num_items)
        except QueueFull:
            self._metrics.shadow_dropped(shadow_key, "overload" if self._engine.is_crowded else "queue_full", num_items)
        except BackgroundDropped:
            self._metrics.shadow_dropped(
                shadow_key, "overload" if self._is_there(shadow_key) else "unloaded", num_items
            )
        except RmError as error:
            self._metrics.shadow_items(shadow_key, error.reason, num_items)
        except Exception:
            _log.exception("%s@%s could not score beside %s@%s.", *shadow_key, *key)
            self._metrics.shadow_items(shadow_key, "internal", num_items)
        finally:
            self._num_items -= num_items

    async def _score(
        self, call: ScoreCall, key: VersionKey, scores: Sequence[float | None], shadow_key: VersionKey
    ) -> None:
        groups = [
            (number, prompt, completion)
            for number, (prompt, completions) in enumerate(call.groups)
            for completion in completions
        ]
        scored = [(item, score) for item, score in zip(groups, scores, strict=True) if score is not None]
        pairs = [(prompt, completion) for (_, prompt, completion), _ in scored]
        if any(map(has_ids, pairs)) and await self._vocabulary_of(key) != await self._vocabulary_of(shadow_key):
            raise Dropped("other_vocabulary")
        how = How(ENCODING_TURN, call.truncation, is_background=True)
        evaluated = await self._evaluate(self._loaded(shadow_key), pairs, how)
        time, name, compared = datetime.now(UTC), secrets.token_hex(8), []
        for outcome, ((number, prompt, completion), score) in zip(evaluated.outcomes, scored, strict=True):
            if isinstance(outcome, RmError):
                self._metrics.shadow_items(shadow_key, outcome.reason, 1)
            else:
                compared.append(
                    ShadowPair(
                        model=key[0],
                        shadow_version=shadow_key[1],
                        version=key[1],
                        time=time,
                        run=call.run,
                        group_key=f"{name}-{number}",
                        score=score,
                        shadow_score=outcome.value,
                        prompt=_text(prompt) if self._log_texts else "",
                        completion=_text(completion) if self._log_texts else "",
                    )
                )
        if compared:
            self._metrics.shadow_items(shadow_key, OK, len(compared))
            self._keep(compared)

    def _is_there(self, key: VersionKey) -> bool:
        """Whether it is loaded, with its parts if it is a composite."""
        if (version := self._engine.loaded.get(key)) is None:
            return False
        parts = composite_of(version).versions if version.manifest.kind == COMPOSITE else ()
        return all(part in self._engine.loaded for part in parts)

    def _loaded(self, key: VersionKey) -> LoadedVersion:
        if (version := self._engine.loaded.get(key)) is None:
            raise VersionNotLoaded(f"{version_name(key)} is not loaded, so it cannot shadow.")
        return version

    async def _evaluate(self, version: LoadedVersion, pairs: Sequence[Pair], how: How) -> Evaluated:
        if version.manifest.kind == COMPOSITE:
            return await self._composites.evaluate(version, pairs, how)
        return await evaluate(self._engine, version, pairs, how)


def make_shadowing(
    engine: Engine,
    composites: Composites,
    versions: VersionManager,
    artifacts: ArtifactStore,
    pairs: PairBuffer,
    metrics: ShadowMetrics,
    *,
    log_texts: bool,
) -> Shadowing:
    """As a server has it: shadows from the catalog, vocabularies from the artifacts."""
    known: dict[str, str] = {}

    async def vocabulary_of(key: VersionKey) -> str:
        snapshot = versions.snapshot
        if snapshot.versions[key].kind == COMPOSITE:  # the one of its parts, if they have only one
            of_parts = {await vocabulary_of(part) for part in snapshot.parts.get(key, ())} - {""}
            return of_parts.pop() if len(of_parts) == 1 else ""
        digest = snapshot.versions[key].digest
        if digest not in known:
            known[digest] = await asyncio.to_thread(lambda: read_vocabulary_digest(artifacts.path(digest)))
        return known[digest]

    return Shadowing(
        engine, composites, lambda: versions.snapshot, vocabulary_of, pairs.add, metrics, log_texts=log_texts
    )


def _text(content: Content) -> str:
    """For people; without NUL, which PostgreSQL does not keep. Token ids are no text."""
    if isinstance(content, str):
        text = content
    else:
        messages = [part for part in content if isinstance(part, ChatMessage)]
        text = "\n".join(f"{message.role}: {message.content}" for message in messages)
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
