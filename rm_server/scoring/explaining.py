"""One item looked into: what the version read, its score by the path of every call, and the parts of a composite."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from rm_server.backends.composite import VersionPart
from rm_server.backends.explanation import ExplainingEncoder, Reading
from rm_server.engine.engine import Engine
from rm_server.engine.loaded import LoadedVersion
from rm_server.engine.versions import VersionManager
from rm_server.errors import InvalidRequest, RmError
from rm_server.registry.manifest import Transform
from rm_server.registry.records import CalibrationRecord, version_name
from rm_server.scoring.composites import composite_of
from rm_server.scoring.routing import Route
from rm_server.scoring.runs import Runs
from rm_server.scoring.scorer import ItemAnswer, ScoreCall, Scorer, item_answers
from rm_server.scoring.selector import parse


@dataclass(frozen=True, slots=True)
class Explanation:
    """One item, by one version. ``version`` 0: a rule of a composite's own.

    ``chosen_by``: why this version, in words. ``reading``: None where the item could not be read (the answer says why),
    and for composites, whose parts read each for itself. ``calibration``: the version's, used or not. ``components``:
    of a composite, in its order; their answers are raw scores, or what a rule counts as before its weight.
    """

    model: str
    version: int
    digest: str
    chosen_by: str
    transform: Transform
    calibration: CalibrationRecord | None
    reading: Reading | None
    answer: ItemAnswer
    components: tuple[Explanation, ...] = ()


class Explainer:
    """Lives on the event loop. What is explained is in nobody's statistics, and gives no run a lease."""

    def __init__(self, engine: Engine, versions: VersionManager, runs: Runs, scorer: Scorer) -> None:
        self._engine = engine
        self._versions = versions
        self._runs = runs
        self._scorer = scorer
        # One of its own: a long text takes a second, and at those that all share runs wait for their leases.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")

    async def explain(self, call: ScoreCall, deadline: float | None) -> Explanation:
        """``call`` has one prompt with one completion. Raises what `Scorer.score` raises."""
        if [len(completions) for _, completions in call.groups] != [1]:
            raise InvalidRequest("One prompt with one completion is explained at a time.")
        selector = parse(call.selector)
        if not self._runs.is_settled(selector, call.run):
            await self._runs.look_again(selector, call.run)
        route = await self._scorer.route(selector, call.run, deadline)
        calibration = self._scorer.checked_calibration(call, route)
        # No await between finding the version and holding it, so that no unload can come in between.
        with self._scorer.use(route.key) as version:
            return await self._of_version(version, _in_words(route, call.run), call, calibration, deadline)

    async def _of_version(
        self,
        version: LoadedVersion,
        chosen_by: str,
        call: ScoreCall,
        calibration: CalibrationRecord | None,
        deadline: float | None,
    ) -> Explanation:
        record = self._versions.snapshot.versions[version.key]  # at once: another server may delete it meanwhile
        (answer,) = item_answers(await self._scorer.evaluate(version, call, deadline), calibration)
        is_composite = version.manifest.kind == "composite"
        return Explanation(
            model=record.model,
            version=record.version,
            digest=record.digest,
            chosen_by=chosen_by,
            transform=version.manifest.transform,
            calibration=record.calibration,
            reading=None if is_composite else await self._reading(version, call),
            answer=answer,
            components=await self._components(version, call, answer, deadline) if is_composite else (),
        )

    async def _components(
        self, composite: LoadedVersion, call: ScoreCall, answer: ItemAnswer, deadline: float | None
    ) -> tuple[Explanation, ...]:
        explained = []
        for index, part in enumerate(composite_of(composite).parts):
            chosen_by = f"component {part.name!r} of {version_name(composite.key)}"
            if isinstance(part, VersionPart):
                with self._engine.use(part.version) as version:
                    explained.append(await self._of_version(version, chosen_by, call, None, deadline))
                continue
            explained.append(
                Explanation(
                    model=composite.key[0],
                    version=0,
                    digest="",
                    chosen_by=chosen_by,
                    transform="rule",
                    calibration=None,
                    reading=await self._reading(composite, call),
                    answer=replace(answer, value=answer.components[index].value, components=())
                    if answer.components
                    else answer,
                )
            )
        return tuple(explained)

    async def _reading(self, version: LoadedVersion, call: ScoreCall) -> Reading | None:
        """None where the item cannot be read, or its encoder cannot tell how."""
        ((prompt, (completion,)),) = call.groups
        if not isinstance(version.encoder, ExplainingEncoder):
            return None
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, version.encoder.explain, prompt, completion, call.truncation
            )
        except RmError:
            return None  # the answer has the same error


def _in_words(route: Route, run: str) -> str:
    match route.chosen_by:
        case "number":
            return f"its number, {route.key[1]}"
        case "lease":
            return f"the lease of the run {run!r}" + (f", given by the arm {route.arm!r}" if route.arm else "")
        case "pin":
            return f"the pin of the run {run!r}"
        case "split":
            return f"the arm {route.arm!r} of the model's split, which the run {run!r} falls into"
        case "label":
            return f"the label {route.label!r}"
