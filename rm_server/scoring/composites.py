"""Composites: their versions and own rules score side by side, and what they give becomes one score an item."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from rm_server.backends.composite import (
    OTHER_IDS,
    OWN_RULES,
    Composite,
    CompositeEncoder,
    VersionPart,
    mean_the_same_by_ids,
    of_part,
)
from rm_server.backends.items import has_ids
from rm_server.engine.checks import check_golden
from rm_server.engine.encoding import Pair
from rm_server.engine.engine import Engine
from rm_server.engine.loaded import LoadedVersion
from rm_server.engine.work import ItemScore
from rm_server.errors import DigestMismatch, InternalError, NonFiniteScore, RmError, VersionNotFound
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.manifest import Manifest
from rm_server.registry.records import Snapshot, VersionKey, version_name
from rm_server.scoring.evaluation import Component, Evaluated, How, evaluate


class Composites:
    """Lives on the engine's event loop."""

    def __init__(self, engine: Engine, artifacts: ArtifactStore, get_snapshot: Callable[[], Snapshot]) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._get_snapshot = get_snapshot
        # Of composites that were loaded once, as their last trial found: whether an id means the same to all its parts.
        self._takes_ids: dict[VersionKey, bool] = {}

    async def evaluate(self, version: LoadedVersion, pairs: Sequence[Pair], how: How) -> Evaluated:
        """As `evaluation.evaluate`, for a composite; its versions are held meanwhile. An item fails with any part."""
        composite = composite_of(version)
        if self._takes_ids[version.key] or not any(map(has_ids, pairs)):
            return await self._evaluate(composite, version, pairs, how)
        readable = [pair for pair in pairs if not has_ids(pair)]
        return _with_refused(pairs, await self._evaluate(composite, version, readable, how))

    async def trial(self, version: LoadedVersion) -> None:
        """What a composite must show before it serves: the parts that it was registered with, and golden scores.

        Raises VersionNotFound, VersionNotLoaded, DigestMismatch, GoldenMismatch, NonFiniteScore; and what a part says
        of a golden example.
        """
        composite, snapshot = composite_of(version), self._get_snapshot()
        for key, part in composite.versions.items():
            record = snapshot.versions.get(key)
            if record is None:
                raise VersionNotFound(f"{part.title} is not in the catalog.")
            if record.digest != part.digest:
                raise DigestMismatch(
                    f"{part.title} has the digest {record.digest}, and the composite was made with {part.digest}."
                )
        paths = [self._artifacts.path(part.digest) for part in composite.versions.values()]
        self._takes_ids[version.key] = await asyncio.to_thread(mean_the_same_by_ids, paths)
        await self._check_golden(version)

    async def _check_golden(self, version: LoadedVersion) -> None:
        golden = version.manifest.golden
        if not golden:
            return
        pairs = [(example.prompt, example.completion) for example in golden]
        evaluated = await self.evaluate(version, pairs, How(use_cache=False))
        scores = []
        for outcome in evaluated.outcomes:
            if isinstance(outcome, RmError):
                raise outcome
            scores.append(outcome.value)
        loaded = {key: self._engine.loaded[key] for key in composite_of(version).versions}
        manifest = replace(version.manifest, tolerance=_tolerance(version, loaded))
        precision = _coarsest(manifest, tuple(loaded.values()))
        expected = tuple(example.score for example in golden)
        check_golden(version_name(version.key), manifest, precision, expected, np.array(scores))

    async def _evaluate(
        self, composite: Composite, version: LoadedVersion, pairs: Sequence[Pair], how: How
    ) -> Evaluated:
        with ExitStack() as holds:
            # Nobody else is asked in between, so that none of them is unloaded before all are held.
            held = {}
            for key, part in composite.versions.items():
                try:
                    held[key] = holds.enter_context(self._engine.use(key))
                except RmError as error:
                    raise of_part(part.title, error) from None
            asked = [(part.title, held[key]) for key, part in composite.versions.items()]
            if composite.rules.rules:
                asked.append((OWN_RULES, version))
            evaluated = await self._side_by_side(asked, pairs, how)
        rules = evaluated.pop() if composite.rules.rules else None
        return _combined(composite, dict(zip(held, evaluated, strict=True)), rules, len(pairs))

    async def _side_by_side(
        self, asked: Sequence[tuple[str, LoadedVersion]], pairs: Sequence[Pair], how: How
    ) -> list[Evaluated]:
        """The first that fails as a whole ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._evaluate_part(*part, pairs, how)) for part in asked]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _evaluate_part(self, name: str, version: LoadedVersion, pairs: Sequence[Pair], how: How) -> Evaluated:
        try:
            return await evaluate(self._engine, version, pairs, how)
        except RmError as error:
            raise of_part(name, error) from error


def composite_of(version: LoadedVersion) -> Composite:
    """What a loaded composite is made of."""
    if not isinstance(version.encoder, CompositeEncoder):
        raise InternalError(f"{version.key} is no composite.")
    return version.encoder.composite


def _combined(
    composite: Composite, by_version: dict[VersionKey, Evaluated], rules: Evaluated | None, num_pairs: int
) -> Evaluated:
    everything = [*by_version.values(), *([] if rules is None else [rules])]
    outcomes: list[ItemScore | RmError] = []
    components: list[tuple[Component, ...]] = []
    for index in range(num_pairs):
        of_versions = {key: evaluated.outcomes[index] for key, evaluated in by_version.items()}
        outcome, parts = _combined_item(composite, of_versions, None if rules is None else rules.outcomes[index])
        outcomes.append(outcome)
        components.append(parts)
    return Evaluated(
        outcomes=outcomes,
        truncated=[any(evaluated.truncated[index] for evaluated in everything) for index in range(num_pairs)],
        num_tokens=[sum(evaluated.num_tokens[index] for evaluated in everything) for index in range(num_pairs)],
        tokenize_s=max(evaluated.tokenize_s for evaluated in everything),
        components=components,
    )


def _combined_item(
    composite: Composite, of_versions: dict[VersionKey, ItemScore | RmError], of_rules: ItemScore | RmError | None
) -> tuple[ItemScore | RmError, tuple[Component, ...]]:
    scores: dict[VersionKey, ItemScore] = {}
    for key, outcome in of_versions.items():
        if isinstance(outcome, RmError):
            return of_part(composite.versions[key].title, outcome), ()
        scores[key] = outcome
    if isinstance(of_rules, RmError):
        return of_part(OWN_RULES, of_rules), ()
    raw = {key: score.value for key, score in scores.items()}
    values = composite.values(raw, () if of_rules is None else of_rules.parts)
    total = composite.total(values)
    if not math.isfinite(total):
        return NonFiniteScore(f"The weighted sum of the components is {total}; they are {values}."), ()
    everything = [*scores.values(), *([] if of_rules is None else [of_rules])]
    combined = ItemScore(
        total, max(score.queue_s for score in everything), max(score.compute_s for score in everything), tuple(values)
    )
    return combined, tuple(
        Component(part.name, value, part.scale.weight, part.version[1], part.digest)
        if isinstance(part, VersionPart)
        else Component(part.name, value, part.scale.weight)
        for part, value in zip(composite.parts, values, strict=True)
    )


def _with_refused(pairs: Sequence[Pair], evaluated: Evaluated) -> Evaluated:
    """Puts those that came as ids back into their places."""
    places = iter(range(len(evaluated.outcomes)))
    index_of = [None if has_ids(pair) else next(places) for pair in pairs]
    components = evaluated.components or []
    return replace(
        evaluated,
        outcomes=[OTHER_IDS if index is None else evaluated.outcomes[index] for index in index_of],
        truncated=[index is not None and evaluated.truncated[index] for index in index_of],
        num_tokens=[0 if index is None else evaluated.num_tokens[index] for index in index_of],
        components=[() if index is None else components[index] for index in index_of],
    )


def _tolerance(version: LoadedVersion, loaded: Mapping[VersionKey, LoadedVersion]) -> Mapping[str, float]:
    """The composite's own; and of a precision that it says nothing of and parts have no other than (int8), what they
    are allowed themselves, as it comes through to the sum: the golden scores were recorded in that.
    """
    own = version.manifest.tolerance
    allowed = dict(own)
    for part in composite_of(version).parts:
        if not isinstance(part, VersionPart):
            continue
        manifest = loaded[part.version].manifest
        if manifest.precision not in ("", *own):
            so_far = allowed.get(manifest.precision, own.get("fp32", 0.0))
            allowed[manifest.precision] = so_far + part.slope * manifest.tolerance.get(manifest.precision, 0.0)
    return allowed


def _coarsest(manifest: Manifest, parts: Sequence[LoadedVersion]) -> str:
    """The precision among those of the parts that is tolerated most; one that is not tolerated at all goes first."""
    precisions = [part.precision for part in parts if part.precision] or ["fp32"]
    return max(precisions, key=lambda precision: manifest.tolerance.get(precision, math.inf))
