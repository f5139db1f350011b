"""The versions that one worker holds, and what it does with them: load, compute, unload. Failures are values here."""

from __future__ import annotations

import copy
import gc
import importlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from rm_server.backends.device import is_lost
from rm_server.backends.device_memory import free_memory_of, give_back_memory, is_out_of_memory
from rm_server.backends.interface import (
    Backend,
    ComputeSettings,
    MixesVersions,
    PartsBackend,
    SharedMemory,
    SharesMemory,
    SharesPrefixes,
    Stretches,
)
from rm_server.backends.items import Batch, Float64Array
from rm_server.errors import InternalError, OutOfMemory, RmError, VersionNotLoaded
from rm_server.registry.manifest import Manifest
from rm_server.registry.records import VersionKey, version_name

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """All that a worker needs to load a version.

    ``probes``: what it computes to warm up and to be checked. ``gives_way``: nobody waits for it, so that it takes what
    time others leave.
    """

    key: VersionKey
    folder: Path
    manifest: Manifest
    settings: ComputeSettings
    probes: tuple[Batch, ...]
    gives_way: bool = False


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a worker says of a version it has loaded. ``memory_bytes``: beside what it ``shared``.

    ``probe_scores``: of all probes, in order. ``mixes_with`` as `MixesVersions`, ``shares_up_to`` as `SharesPrefixes`.
    """

    memory_bytes: int
    precision: str
    probe_scores: Float64Array
    shared: SharedMemory | None = None
    mixes_with: str = ""
    shares_up_to: int = 0


@dataclass(frozen=True, slots=True)
class Computed:
    """Raw scores, shape (num_items,), and how long the forward pass took, in seconds.

    ``parts``, shape (num_items, num_parts): what the scores are weighted sums of, where the version can tell.
    """

    scores: Float64Array
    seconds: float
    parts: Float64Array | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """As `Batch` travels."""
        return _unpacked, (np.asarray(self.scores, np.float64).tobytes(), self.seconds, self.parts)


def _unpacked(scores: bytes, seconds: float, parts: Float64Array | None) -> Computed:
    return Computed(np.frombuffer(scores, np.float64), seconds, parts)


class Host:
    """Versions in memory. One thread computes and unloads; loads may run beside it, each in a thread of its own.

    ``loader``, as ``module:function``, makes a Backend of folder, manifest and settings.
    Failures are returned, as fresh errors without a trace: a trace would keep the weights of a failed load alive.
    """

    def __init__(self, loader: str) -> None:
        self._loader = loader
        self._backends: dict[VersionKey, Backend] = {}
        self._device = "cpu"  # All orders of a server name the same.

    def load(self, order: LoadOrder) -> LoadReport | RmError:
        """Loads a version and computes its probes, the first ones twice: the first time warms up."""
        self._device = order.settings.device
        outcome = attempt(f"Loading {version_name(order.key)}", lambda: self._load(order))
        if isinstance(outcome, RmError):
            gc.collect()
        self._give_back()  # The trials took more than the version keeps, in fp32 at that.
        return outcome

    def unload(self, key: VersionKey) -> None:
        """Frees a version; nothing happens when it is not here."""
        if self._backends.pop(key, None) is not None:
            # A backend goes with its last reference. Looking for cycles would hold up what is computed by 0.1 s.
            self._give_back()

    def compute(self, keys: tuple[VersionKey, ...], batch: Batch, is_alone: bool) -> Computed | RmError:
        """Scores a batch; of several versions, its ``owners`` are places in ``keys``.

        ``is_alone``: no other worker computes now, so that this one may use the threads of all.
        """
        names = ", ".join(map(version_name, keys))
        return attempt(f"Scoring with {names}", lambda: self._compute(keys, batch, is_alone))

    def device_memory(self, device: str) -> int | None:
        """Bytes that are free on a GPU; None: the machine's memory is what counts, or nothing is known."""
        outcome = attempt("Asking for free memory", lambda: free_memory_of(device))
        return None if isinstance(outcome, RmError) else outcome

    def is_lost(self) -> bool:
        """Whether nothing more can be computed in this process, because its GPU fails whatever it is asked."""
        return attempt("Asking the device whether it works", lambda: is_lost(self._device)) is True

    def _give_back(self) -> None:
        """For the other workers of a GPU. A failure goes to the log; what was asked for is done all the same."""
        attempt("Giving back memory", lambda: give_back_memory(self._device))

    def _load(self, order: LoadOrder) -> LoadReport:
        backend: Backend = imported(self._loader)(order.folder, order.manifest, order.settings)
        scores = [backend.score(batch) for batch in (*order.probes[:1], *order.probes)][1:]
        shared = backend.shared_memory if isinstance(backend, SharesMemory) else None
        mixes_with = backend.mixes_with if isinstance(backend, MixesVersions) else ""
        probe_scores = np.concatenate([np.empty(0), *scores])
        shares_up_to = backend.shares_up_to if isinstance(backend, SharesPrefixes) else 0
        report = LoadReport(backend.memory_bytes, backend.precision, probe_scores, shared, mixes_with, shares_up_to)
        self._backends[order.key] = backend
        return report

    def _compute(self, keys: tuple[VersionKey, ...], batch: Batch, is_alone: bool) -> Computed:
        backends = []
        for key in keys:
            if key not in self._backends:
                raise VersionNotLoaded(f"{version_name(key)} is not loaded in this worker.")
            backends.append(self._backends[key])
        for backend in backends:
            if hasattr(backend, "stretch"):  # to ask for the protocol takes ten times as long
                cast(Stretches, backend).stretch(is_alone)
        return computed(backends[0], keys[0], batch) if len(keys) == 1 else _computed_together(backends, keys, batch)


def computed(backend: Backend, key: VersionKey, batch: Batch) -> Computed:
    """Scores a batch with a backend that is at hand. Raises what the backend raises, and InternalError."""
    parts = None
    start = time.perf_counter()
    if hasattr(backend, "score_parts"):  # to ask for the protocol takes ten times as long
        scores, parts = cast(PartsBackend, backend).score_parts(batch)
    else:
        scores = np.asarray(backend.score(batch), np.float64)
    seconds = time.perf_counter() - start
    _check_shape(version_name(key), scores, batch)
    return Computed(scores, seconds, parts)


def _computed_together(backends: Sequence[Backend], keys: Sequence[VersionKey], batch: Batch) -> Computed:
    """Scores a batch of several versions in one forward pass."""
    mixing = cast(Sequence[MixesVersions], backends)  # as their load reports said
    start = time.perf_counter()
    scores = mixing[0].score_mixed(mixing, batch)
    seconds = time.perf_counter() - start
    _check_shape(", ".join(map(version_name, keys)), scores, batch)
    return Computed(scores, seconds)


def _check_shape(names: str, scores: Float64Array, batch: Batch) -> None:
    if scores.shape != (batch.num_items,):
        raise InternalError(f"{names} gave scores of shape {scores.shape} for {batch.num_items} items.")


def imported(name: str) -> Any:
    """What ``package.module:attribute`` names; imported now, so that those who do not compute import no torch."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def attempt(doing: str, function: Callable[[], T]) -> T | RmError:
    """The function's value, or its failure as a fresh error of ours.

    An error that is not ours goes to the log with its trace; callers need not read its text, which may name paths and
    other people's content.
    """
    try:
        return function()
    except RmError as error:
        return copy.copy(error)
    except Exception as error:
        if is_out_of_memory(error):
            return OutOfMemory(f"{doing}: not enough memory.")
        _log.exception("%s failed.", doing)
        return InternalError(f"{doing} failed; the server's log says why.")
