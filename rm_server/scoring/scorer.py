"""The path of a request: which version, what tokens, a turn in the engine, and an answer for each item."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Protocol, TypeAlias

from rm_server.backends.items import Content
from rm_server.config import LimitSettings
from rm_server.engine.engine import Engine
from rm_server.engine.loaded import Hold, LoadedVersion
from rm_server.engine.versions import VersionManager
from rm_server.engine.work import ItemScore
from rm_server.errors import (
    NonFiniteScore,
    NotCalibrated,
    RequestTooLarge,
    RmError,
    VersionChanged,
    VersionNotLoaded,
)
from rm_server.registry.manifest import Transform, TruncationRule
from rm_server.registry.records import CalibrationRecord, VersionKey, version_name
from rm_server.scoring.composites import Composites
from rm_server.scoring.evaluation import Component, Evaluated, How, evaluate
from rm_server.scoring.not_yet import not_yet
from rm_server.scoring.routing import Route
from rm_server.scoring.runs import Runs
from rm_server.scoring.selector import Selector, parse


class ScoringMetrics(Protocol):
    """What is counted here; see rm_server/metrics."""

    def items_finished(self, key: VersionKey, reason: str, num_items: int) -> None: ...
    def tokens_scored(self, key: VersionKey, num_tokens: int, num_truncated: int) -> None: ...
    def tokenized(self, key: VersionKey, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """One call. ``groups``: prompts, each with its completions. ``run`` empty: the anonymous run.

    ``truncation`` None: the version's own rule. ``expected_digest`` empty: no check.
    """

    selector: str
    groups: Sequence[tuple[Content, Sequence[Content]]]
    run: str = ""
    request_id: str = ""
    calibrated: bool = False
    truncation: TruncationRule | None = None
    bypass_cache: bool = False
    expected_digest: str = ""
    priority: int = 0

    @property
    def num_items(self) -> int:
        """Completions of all groups."""
        return sum(len(completions) for _, completions in self.groups)


OnRouted: TypeAlias = Callable[[ScoreCall, VersionKey], None]
OnScored: TypeAlias = Callable[[ScoreCall, Route, Sequence[float | None]], None]


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """What became of one completion: exactly one of ``value`` (finite) and ``error`` is set."""

    value: float | None
    error: RmError | None
    truncated: bool = False
    num_tokens: int = 0
    components: tuple[Component, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds. For a call of several batches, the longest of each."""

    tokenize_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ScoreAnswer:
    """The scores, and exactly what gave them. ``items``: in the order of the groups, then of the completions.

    ``label`` None: the version was chosen by number, lease, pin or split; ``arm``: of the split that chose it.
    ``calibration`` is set when the values are calibrated.
    """

    model: str
    version: int
    digest: str
    label: str | None
    transform: Transform
    calibration: CalibrationRecord | None
    items: list[ItemAnswer]
    timings: Timings
    arm: str | None = None


class Scorer:
    """Answers calls. Lives on the engine's event loop."""

    def __init__(
        self,
        engine: Engine,
        versions: VersionManager,
        runs: Runs,
        limits: LimitSettings,
        metrics: ScoringMetrics,
        composites: Composites,
    ) -> None:
        self._engine = engine
        self._versions = versions
        self._runs = runs
        self._limits = limits
        self._metrics = metrics
        self._composites = composites
        self.on_scored: OnScored = lambda call, route, scores: None
        """Told of each answered call, with its raw scores in order; None where an item failed. Must not take long."""
        self.log: Callable[[ScoreCall, Route, Evaluated, CalibrationRecord | None], None] | None = None
        """Told of the same, with all that became of the items. None: nobody keeps a log."""

    async def score(
        self, call: ScoreCall, deadline: float | None, on_routed: OnRouted = lambda call, key: None
    ) -> ScoreAnswer:
        """Scores all completions with one version; each succeeds or fails by itself.

        ``deadline`` on the event loop's clock. ``on_routed`` is told which version, before all waiting.
        Cancelling drops what is not being computed yet. Raises only when nothing could be tried: InvalidSelector,
        InvalidRequest, RequestTooLarge, NotFound's members, VersionChanged, NotCalibrated, QueueFull, Draining,
        WorkerFailed, DeadlineExceeded, CatalogUnavailable; and what a load raises, where the version was paged out.
        """
        started = time.perf_counter()
        self.check_size(call.num_items)
        selector = parse(call.selector)
        await self._settle_run(selector, call)
        route = await self.route(selector, call.run, deadline, partial(on_routed, call))
        calibration = self.checked_calibration(call, route)
        # No await between finding the version and holding it, so that no unload can come in between.
        with self.use(route.key) as version:
            self._runs.keep(selector, call.run)
            evaluated = await self.evaluate(version, call, deadline)
        scores = [outcome for outcome in evaluated.outcomes if isinstance(outcome, ItemScore)]
        answers = item_answers(evaluated, calibration)
        self._count(call, route, answers, [score.value for score in scores], evaluated.tokenize_s)
        if self.log is not None:
            self.log(call, route, evaluated, calibration)
        self.on_scored(call, route, [o.value if isinstance(o, ItemScore) else None for o in evaluated.outcomes])
        return ScoreAnswer(
            model=route.key[0],
            version=route.key[1],
            digest=route.digest,
            label=route.label,
            transform=version.manifest.transform,
            calibration=calibration,
            items=answers,
            timings=Timings(
                tokenize_s=evaluated.tokenize_s,
                queue_s=max((score.queue_s for score in scores), default=0.0),
                compute_s=max((score.compute_s for score in scores), default=0.0),
                total_s=time.perf_counter() - started,
            ),
            arm=route.arm,
        )

    async def evaluate(self, version: LoadedVersion, call: ScoreCall, deadline: float | None) -> Evaluated:
        """Raw scores of the call's items by a version that the caller holds; see `evaluation.evaluate`."""
        pairs = [(prompt, completion) for prompt, completions in call.groups for completion in completions]
        how = How(call.run, call.truncation, call.priority, not call.bypass_cache, deadline)
        if version.manifest.kind != "composite":
            return await evaluate(self._engine, version, pairs, how)
        try:
            return await self._composites.evaluate(version, pairs, how)
        except VersionNotLoaded as error:  # it lost a part
            raise self._not_yet(version.key) or error from None

    async def route(
        self,
        selector: Selector,
        run: str,
        deadline: float | None,
        on_found: Callable[[VersionKey], None] = lambda key: None,
    ) -> Route:
        """Which version a call of this run means; one that was paged out is back when this returns.

        ``on_found`` is told before it is waited for. Raises what `Runs.route` and `Pager.bring_back` raise.
        """
        while True:
            route = self._runs.route(selector, run)
            on_found(route.key)
            if not self._versions.pager.is_away(route.key):
                return route
            await self._versions.pager.bring_back(route.key, deadline)

    def use(self, key: VersionKey) -> Hold:
        """As `Engine.use`; where the version could not be loaded here, VersionNotLoaded says why.

        Raises Draining, too, while it is being loaded because another server was told to: callers that go round the
        servers come here before it is there. And what failed, where that passes.
        """
        try:
            return self._engine.use(key)
        except VersionNotLoaded as error:
            if (passing := self._not_yet(key)) is not None:
                raise passing from None
            if (failure := self._versions.state_of(key).error) is None:
                raise
            raise VersionNotLoaded(f"{error.message} Its last load failed: {failure.message}") from None

    def _not_yet(self, key: VersionKey) -> RmError | None:
        return not_yet(key, self._versions.state_of(key), key in self._versions.wanted)

    async def _settle_run(self, selector: Selector, call: ScoreCall) -> None:
        """Waits for the catalog where this server does not know the run, or knows something else than its caller."""
        if not self._runs.is_settled(selector, call.run):
            await self._runs.settle(selector, call.run, lambda route: self.checked_calibration(call, route))
        if call.expected_digest and self._runs.route(selector, call.run).digest != call.expected_digest:
            await self._runs.look_again(selector, call.run)

    def check_size(self, num_items: int, what: str = "completions") -> None:
        """Raises RequestTooLarge. Asked before a request becomes a ScoreCall, too: that stops the event loop for
        seconds where it has millions of them. ``what``: what was counted, each of which has an item or none.
        """
        limit = self._limits.max_items_per_request
        if num_items > limit:
            raise RequestTooLarge(
                f"The call has {num_items} {what}; at most {limit} may come at once. Send them in several calls."
            )

    def checked_calibration(self, call: ScoreCall, route: Route) -> CalibrationRecord | None:
        """What the scores go through; None: nothing. Raises VersionChanged, NotCalibrated."""
        if call.expected_digest and call.expected_digest != route.digest:
            raise VersionChanged(
                f"{call.selector} means {version_name(route.key)} with digest {route.digest} now; "
                f"{call.expected_digest} was expected."
            )
        if not call.calibrated:
            return None
        calibration = self._versions.snapshot.versions[route.key].calibration
        if calibration is None:
            raise NotCalibrated(
                f"{version_name(route.key)} has no calibration. Ask for raw scores, or give it one with "
                "`rm-server register --reference-data` or `rm-server calibrate`."
            )
        return calibration

    def _count(
        self, call: ScoreCall, route: Route, answers: Sequence[ItemAnswer], raw_scores: list[float], tokenize_s: float
    ) -> None:
        reasons = Counter("ok" if answer.error is None else answer.error.reason for answer in answers)
        for reason, num_items in reasons.items():
            self._metrics.items_finished(route.key, reason, num_items)
        scored = [answer for answer in answers if answer.error is None]
        num_tokens = sum(answer.num_tokens for answer in scored)
        self._metrics.tokens_scored(route.key, num_tokens, sum(answer.truncated for answer in scored))
        self._metrics.tokenized(route.key, tokenize_s)
        self._runs.scored(call.run, route, raw_scores, num_tokens)


def item_answers(evaluated: Evaluated, calibration: CalibrationRecord | None) -> list[ItemAnswer]:
    """The items as callers are told of them."""
    no_components = repeat(())
    return [
        _item_answer(outcome, truncated, num_tokens, components, calibration)
        for outcome, truncated, num_tokens, components in zip(
            evaluated.outcomes,
            evaluated.truncated,
            evaluated.num_tokens,
            no_components if evaluated.components is None else evaluated.components,
            strict=False,
        )
    ]


def _item_answer(
    outcome: ItemScore | RmError,
    truncated: bool,
    num_tokens: int,
    components: tuple[Component, ...],
    calibration: CalibrationRecord | None,
) -> ItemAnswer:
    if isinstance(outcome, RmError):
        return ItemAnswer(None, outcome, truncated, num_tokens)
    value = outcome.value if calibration is None else calibration.apply(outcome.value)
    if not math.isfinite(value):
        error = NonFiniteScore(f"The raw score {outcome.value} is {value} when it is calibrated; ask for raw scores.")
        return ItemAnswer(None, error, truncated, num_tokens)
    return ItemAnswer(value, None, truncated, num_tokens, components)
