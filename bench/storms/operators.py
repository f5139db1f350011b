"""Operators in a hurry: each changes one kind of thing without pause and notes what it means from then on."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, TypeVar

import grpc
from rm_api.v1 import errors_pb2, experiments_pb2, experiments_pb2_grpc, models_pb2, models_pb2_grpc

from bench.service import CHANNEL_OPTIONS
from bench.storms.meaning import Meaning
from rm_server.registry.records import Arm, Split

_TIMEOUT_S = 300.0
# Somebody needs the version, or somebody else was quicker: what an operator hears on a busy day.
_REFUSALS = {errors_pb2.ERROR_REASON_VERSION_IN_USE, errors_pb2.ERROR_REASON_VERSION_NOT_LOADED}

Outcome = tuple[float, float, Any]
"""When a change began and ended, and what was answered."""

T = TypeVar("T")


@dataclass
class Operators:
    """Changes ``model`` and ``composite`` from several threads for the time of a block.

    ``versions`` are for runs, ``passing_versions`` for the label canary alone: no lease, split or composite keeps those
    loaded. ``runs_to_come``: names of runs that will ask soon, for pins.
    """

    address: str
    model: str
    composite: str
    versions: Sequence[int]
    passing_versions: Sequence[int]
    composite_versions: Sequence[int]
    meaning: Meaning
    runs_to_come: Callable[[], list[str]]
    num_done: Counter[str] = field(default_factory=Counter)
    num_refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def at_work(self) -> Any:
        """They work until the block ends."""
        tasks: list[Callable[[random.Random], None]] = [
            lambda moment: self._move_label(moment, "label", self.model, "stable", self.versions),
            lambda moment: self._move_label(moment, "swap", self.model, "canary", self.passing_versions),
            lambda moment: self._move_label(moment, "label", self.composite, "stable", self.composite_versions),
            self._load_and_unload,
            self._split,
            self._pin,
            self._shadow,
        ]
        with ExitStack() as stack:
            channel = stack.enter_context(grpc.insecure_channel(self.address, CHANNEL_OPTIONS))
            self._models = models_pb2_grpc.ModelServiceStub(channel)
            self._experiments = experiments_pb2_grpc.ExperimentServiceStub(channel)
            threads = [threading.Thread(target=self._work, args=(task, seed)) for seed, task in enumerate(tasks)]
            for thread in threads:
                thread.start()
            try:
                yield self
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join()

    def _work(self, task: Callable[[random.Random], None], seed: int) -> None:
        moment = random.Random(seed)
        while not self._stop.is_set():
            try:
                task(moment)
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                return

    def _change(self, what: str, method: Any, request: Any) -> Outcome | None:
        """None: it was refused, and so nothing changed."""
        began = time.monotonic()
        try:
            answer = method(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            if _reason(error) not in _REFUSALS:
                raise
            self.num_refused[what] += 1
            return None
        self.num_done[what] += 1
        return began, time.monotonic(), answer

    def _move_label(self, moment: random.Random, what: str, model: str, label: str, versions: Sequence[int]) -> None:
        """A ``swap`` unloads what the label named before; else that is left to chance."""
        timeline = self.meaning.labels[model, label]
        version = moment.choice([version for version in versions if version != timeline.last])
        is_unloaded = what == "swap" or moment.random() < 0.5
        request = models_pb2.SetLabelRequest(
            model=model, label=label, version=version, load=True, unload_previous=is_unloaded
        )
        if (outcome := self._change(what, self._models.SetLabel, request)) is not None:
            timeline.change(outcome[0], outcome[1], version)

    def _load_and_unload(self, moment: random.Random) -> None:
        selector = f"{self.model}@{moment.choice((*self.versions, *self.passing_versions))}"
        self._change("load", self._models.LoadVersion, models_pb2.LoadVersionRequest(selector=selector))
        self._change("unload", self._models.UnloadVersion, models_pb2.UnloadVersionRequest(selector=selector))

    def _split(self, moment: random.Random) -> None:
        timeline = self.meaning.splits[self.model]
        if timeline.last is not None and moment.random() < 0.3:
            removal = experiments_pb2.RemoveSplitRequest(model=self.model)
            if (outcome := self._change("split", self._experiments.RemoveSplit, removal)) is not None:
                timeline.change(outcome[0], outcome[1], None)
            return
        request = experiments_pb2.SetSplitRequest(load=True)
        request.split.model = self.model
        for number, version in enumerate(moment.sample(self.versions, 2)):
            request.split.arms.add(name="ab"[number], version=version, weight=moment.choice((0.1, 0.5, 1.0)))
        if (outcome := self._change("split", self._experiments.SetSplit, request)) is not None:
            timeline.change(outcome[0], outcome[1], _read_split(outcome[2].split))

    def _pin(self, moment: random.Random) -> None:
        run = moment.choice(self.runs_to_come())
        timeline = self.meaning.pins[self.model, run]
        pin = experiments_pb2.Pin(run=run, model=self.model, version=moment.choice(self.versions))
        outcome = self._change("pin", self._experiments.SetPin, experiments_pb2.SetPinRequest(pin=pin))
        if outcome is None:
            self._stop.wait(0.05)
            return
        timeline.change(outcome[0], outcome[1], pin.version)
        # For some time, so that the run meets it now and then.
        self._stop.wait(moment.uniform(0.1, 1.0))
        removal = experiments_pb2.RemovePinRequest(run=run, model=self.model)
        if (outcome := self._change("pin", self._experiments.RemovePin, removal)) is not None:
            timeline.change(outcome[0], outcome[1], None)

    def _shadow(self, moment: random.Random) -> None:
        shadow = experiments_pb2.Shadow(model=self.model, version=moment.choice(self.versions), share=0.2)
        request = experiments_pb2.SetShadowRequest(shadow=shadow, load=True)
        if self._change("shadow", self._experiments.SetShadow, request) is None:
            return
        self._stop.wait(moment.uniform(0.1, 1.0))
        removal = experiments_pb2.RemoveShadowRequest(model=self.model, version=shadow.version)
        self._change("shadow", self._experiments.RemoveShadow, removal)


def _reason(error: Any) -> int:
    carried = dict(error.trailing_metadata() or ()).get("rm-error-bin", b"")
    return errors_pb2.Error.FromString(carried).reason


def _read_split(message: experiments_pb2.Split) -> Split:
    arms = tuple(Arm(arm.name, arm.version, arm.weight) for arm in message.arms)
    return Split(message.model, arms, message.salt, message.update_time.ToDatetime(UTC))
