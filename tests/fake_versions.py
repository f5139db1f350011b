"""A family of versions whose scores can be computed by hand: the sum of the token ids, times the version's factor.

`rules.json` in a version's folder says what it does wrong; the name lets the registry take it for a version of rules.
Some token ids make the backend misbehave, see below.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from rm_server.backends import loading
from rm_server.backends.footprint import Footprint
from rm_server.backends.interface import Backend, ComputeSettings, Encoder
from rm_server.backends.items import Batch, Content, EncodedItem, Float64Array
from rm_server.config import EngineSettings
from rm_server.engine import host
from rm_server.engine.engine import Engine
from rm_server.engine.memory import Estimate
from rm_server.engine.work import ItemScore
from rm_server.errors import EmptyItem, InvalidTokenIds, OutOfMemory, WeightsMismatch
from rm_server.metrics import Metrics
from rm_server.registry.manifest import GoldenExample, Manifest, TruncationRule

NAN = 1001
"""The item's score is NaN."""
BAD = 1002
"""The batch fails with an error that is not ours."""
TOO_LARGE = 1003
"""The batch fails for want of memory when it has more than one item."""
NEVER_FITS = 1004
"""The batch fails for want of memory."""
KILL = 1005
"""The worker is killed, as by the system's out-of-memory killer, unless it was before (see `was_killed`)."""
ALWAYS_KILL = 1006
"""The worker is killed each time."""
WAIT = 1007
"""The batch takes until the gate is open (see `open_gate`)."""
LOSES_GPU = 1008
"""The batch fails, and so does, from then on, whatever the worker asks of its GPU. For worker processes only."""

LIVE: WeakSet[FakeBackend] = WeakSet()
"""The backends in this process's memory. How many there were is noted under ``live`` whenever one is made."""


@dataclass(frozen=True)
class FakeVersion:
    """What `rules.json` says."""

    factor: float = 0.5
    is_constant: bool = False
    gives_nan: bool = False
    lacks_head: bool = False
    needs_memory: bool = False
    is_fatal: bool = False
    waits: bool = False
    """Its load takes until the gate is open."""
    family: str = ""
    """Versions of one family can share a batch."""
    shares_up_to: int = 0
    """It says that it computes once what neighbours up to so long begin with."""


def make_version(folder: Path, manifest: Manifest | None = None, **options: object) -> Manifest:
    """Writes a version's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.json").write_text(json.dumps(options))
    return manifest or Manifest("sequence_classification", golden=(GoldenExample((1, 2), (3,), 3.0),))


@asynccontextmanager
async def running_engine(
    *,
    load_weightless: str = "fake_versions:load_weightless",
    estimate: Estimate = lambda *_: Footprint(),
    available: Callable[[], int | None] = lambda: None,
    metrics: Metrics | None = None,
    **settings: Any,
) -> AsyncIterator[Engine]:
    """An engine over fake versions, with these EngineSettings; computes in a thread unless told otherwise.

    Unless told otherwise, versions take no memory and there is any.
    """
    engine = Engine(
        EngineSettings(**{"workers": 0, "threads_per_worker": 1} | settings),
        metrics or Metrics(),
        load_backend="fake_versions:load_backend",
        load_encoder="fake_versions:load_encoder",
        load_weightless=load_weightless,
        estimate=estimate,
        available=available,
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(drain_s=0)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what other threads or processes do. A minute is for ever."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 – nobody there could set an event
            await asyncio.sleep(0.001)


def items(*contents: Sequence[int]) -> list[EncodedItem]:
    """One item for each list of token ids."""
    return [EncodedItem(np.array(ids, np.int32), len(ids)) for ids in contents]


async def outcomes(futures: Iterable[asyncio.Future[ItemScore]]) -> list[float | type[BaseException]]:
    """Scores, and the classes of errors, when all are done. A minute is for ever."""
    async with asyncio.timeout(60):
        done = await asyncio.gather(*futures, return_exceptions=True)
    return [outcome.value if isinstance(outcome, ItemScore) else type(outcome) for outcome in done]


def load_encoder(folder: Path, manifest: Manifest) -> Encoder:
    """A composite of fake versions is a real one."""
    return loading.load_encoder(folder, manifest) if manifest.kind == "composite" else FakeEncoder()


def load_weightless(folder: Path, manifest: Manifest) -> None:
    """Where all is computed by workers."""


def load_second_backend(folder: Path, manifest: Manifest) -> FakeBackend:
    """Where versions have no weights."""
    return load_backend(folder, manifest, ComputeSettings())


def load_backend(folder: Path, manifest: Manifest, settings: ComputeSettings) -> Backend:
    if manifest.kind == "composite":
        return loading.load_backend(folder, manifest, settings)
    version = FakeVersion(**json.loads((folder / "rules.json").read_text()))
    if version.lacks_head:
        raise WeightsMismatch("score.weight is missing.")
    if version.needs_memory:
        raise MemoryError
    if version.is_fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    if version.waits:
        note(folder, "waits", 1)
        wait_at_gate(folder)
    return FakeBackend(folder, version, settings)


class FakeEncoder:
    """Text becomes its character codes. Ids go through as they are."""

    parts = ()

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        return [None] * len(pairs)

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        if not completion:
            raise EmptyItem("no completion")
        ids = [*self._ids(prompt), *self._ids(completion)]
        if any(token < 0 for token in ids):
            raise InvalidTokenIds("below 0")
        if 0 in ids:
            raise RuntimeError("the encoder does not know 0")
        return EncodedItem(np.array(ids, np.int32), len(ids), completion_start=len(self._ids(prompt)))

    def _ids(self, content: Content) -> list[int]:
        if isinstance(content, str):
            return [ord(character) for character in content]
        return [token for token in content if isinstance(token, int)]


class FakeBackend:
    def __init__(self, folder: Path, version: FakeVersion, settings: ComputeSettings) -> None:
        self._folder = folder
        self._version = version
        LIVE.add(self)
        note(folder, "live", len(LIVE))
        note(folder, "niceness", os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        self.memory_bytes = 1000
        self.precision = settings.precision
        self.mixes_with = version.family
        self.shares_up_to = version.shares_up_to

    def score(self, batch: Batch) -> Float64Array:
        note(self._folder, "batches", batch.num_items)
        if KILL in batch.ids and not was_killed(self._folder):
            (self._folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if ALWAYS_KILL in batch.ids:
            os.kill(os.getpid(), signal.SIGKILL)
        if WAIT in batch.ids:
            wait_at_gate(self._folder)
        if LOSES_GPU in batch.ids:
            host.is_lost = lambda _: True
            raise RuntimeError("CUDA error: device-side assert triggered")
        if BAD in batch.ids:
            raise ValueError("a bad item")
        if NEVER_FITS in batch.ids or (TOO_LARGE in batch.ids and batch.num_items > 1):
            raise OutOfMemory("too much for the device")
        starts = np.concatenate([[0], np.cumsum(batch.lengths)])
        scores = np.array(
            [
                np.nan if self._version.gives_nan or NAN in batch.ids[start:end] else float(batch.ids[start:end].sum())
                for start, end in pairwise(starts)
            ],
            np.float64,
        )
        return np.full_like(scores, 7.0) if self._version.is_constant else self._version.factor * scores

    def stretch(self, is_alone: bool) -> None:
        note(self._folder, "alone", int(is_alone))

    def score_mixed(self, backends: Sequence[FakeBackend], batch: Batch) -> Float64Array:
        assert batch.owners is not None
        note(self._folder, "mixed", len(backends))
        ids = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
        scores = [
            backend.score(Batch.of([EncodedItem(ids[index], len(ids[index])) for index in np.flatnonzero(own)]))
            for place, backend in enumerate(backends)
            if (own := batch.owners == place).any()
        ]
        return np.concatenate(scores)


def wait_at_gate(folder: Path) -> None:
    while not (folder / "gate").exists():
        time.sleep(0.001)


def open_gate(folder: Path) -> None:
    """Lets waiting batches and loads go on."""
    (folder / "gate").touch()


def was_killed(folder: Path) -> bool:
    """Whether a batch with KILL has had its effect."""
    return (folder / "killed").exists()


def note(folder: Path, name: str, value: int) -> None:
    """Keeps a number where the test can read it, whichever process computes."""
    with (folder / name).open("a") as file:
        file.write(f"{value}\n")


def noted(folder: Path, name: str = "batches") -> list[int]:
    """The numbers in order: for ``batches``, the items of each batch that was begun, trials at load first."""
    path = folder / name
    return [int(line) for line in path.read_text().split()] if path.exists() else []
