"""Processes that hold versions and compute random items for a time: how fast a backend is, with no server."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from rm_server.backends.compute_environment import compute_environment, environment_for_children
from rm_server.backends.interface import Backend, ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.json_file import read_json
from rm_server.errors import InternalError, RmError
from rm_server.registry.lora import base_folder
from rm_server.registry.manifest import Manifest, Precision
from rm_server.registry.records import VersionKey
from rm_server.training.tuning import Crew, lengths

_NUM_ITEMS = 256
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version to load in a precision."""

    key: VersionKey
    folder: Path
    manifest: Manifest
    precision: Precision


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a candidate: how far its golden scores are off (None: it has none), or why it cannot be loaded."""

    golden_difference: float | None = None
    error: str = ""


class TimingCrew:
    """W processes with T threads each, which compute the same at once; they end with the ``with`` block."""

    def __init__(self, crew: Crew, device: str) -> None:
        self.crew = crew
        workers, threads = crew
        context = multiprocessing.get_context("spawn")
        self._links: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        with environment_for_children(compute_environment(threads)):
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, device, threads), daemon=True)
                process.start()
                theirs.close()
                self._links.append(ours)
                self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def begin_load(self, candidates: Sequence[Candidate]) -> None:
        """All processes load all candidates, each after the other; `loaded` waits for them."""
        self._send(("load", tuple(candidates)))

    def loaded(self) -> list[Loaded]:
        """What became of each candidate, in their order. Raises InternalError when a process died."""
        answers: list[list[Loaded]] = self._receive()
        return [next((one for one in outcome if one.error), outcome[0]) for outcome in zip(*answers, strict=True)]

    def tokens_per_s(self, candidate: Candidate, max_batch_tokens: int, seconds: float) -> float:
        """Of all processes together, all of them busy; each ends after the batch in which the time is over."""
        self._send(("run", candidate.key, candidate.precision, max_batch_tokens, seconds))
        return float(sum(self._receive()))

    def _send(self, message: tuple[Any, ...]) -> None:
        for link in self._links:
            link.send(message)

    def _receive(self) -> list[Any]:
        answers = []
        for link in self._links:
            try:
                if not link.poll(_TIMEOUT_S):
                    raise InternalError(f"A process that measures did not answer within {_TIMEOUT_S:g} s.")
                answers.append(link.recv())
            except (EOFError, OSError) as error:
                raise InternalError(
                    "A process that measures died, for want of memory perhaps; try fewer with --workers."
                ) from error
        for answer in answers:
            if isinstance(answer, RmError):
                raise answer
        return answers


def _serve(link: Connection, device: str, threads: int) -> None:
    """In a process: answers until the other end is closed."""
    backends: dict[tuple[VersionKey, Precision], Backend] = {}
    items: dict[VersionKey, list[EncodedItem]] = {}
    while True:
        try:
            what, *arguments = link.recv()
        except EOFError:
            return
        if what == "load":
            outcomes = []
            for candidate in arguments[0]:
                settings = ComputeSettings(device=device, precision=candidate.precision, threads=threads)
                try:
                    backend, loaded = _load(candidate, settings)
                    backends[candidate.key, candidate.precision] = backend
                    items.setdefault(candidate.key, random_items(candidate.folder, candidate.manifest))
                except RmError as error:
                    loaded = Loaded(error=error.message)
                outcomes.append(loaded)
            link.send(outcomes)
        else:
            key, precision, max_batch_tokens, seconds = arguments
            try:
                link.send(_rate(backends[key, precision], items[key], max_batch_tokens, seconds))
            except RmError as error:
                link.send(error)


def _load(candidate: Candidate, settings: ComputeSettings) -> tuple[Backend, Loaded]:
    from rm_server.backends.loading import load_backend, load_encoder

    backend = load_backend(candidate.folder, candidate.manifest, settings)
    golden = candidate.manifest.golden
    if not golden:
        return backend, Loaded()
    encoder = load_encoder(candidate.folder, candidate.manifest)
    scores = backend.score(Batch.of([encoder.encode(example.prompt, example.completion) for example in golden]))
    difference = float(np.abs(scores - np.array([example.score for example in golden])).max())
    return backend, Loaded(golden_difference=difference)


def random_items(folder: Path, manifest: Manifest) -> list[EncodedItem]:
    """Random ids of the vocabulary in usual lengths; speed does not depend on which."""
    config = read_json((base_folder(folder) if manifest.kind == "lora" else folder) / "config.json")
    vocab_size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 2
    random = np.random.default_rng(1)
    return [
        EncodedItem(ids=random.integers(0, vocab_size, length).astype(np.int32), num_tokens=length)
        for length in lengths(manifest.max_tokens, _NUM_ITEMS)
    ]


def _rate(backend: Backend, items: Sequence[EncodedItem], max_batch_tokens: int, seconds: float) -> float:
    """Tokens/s over whole batches, from the first on, for at least ``seconds``."""
    batches = _batches(items, max_batch_tokens)
    num_tokens = place = 0
    start = time.perf_counter()
    while (took := time.perf_counter() - start) < seconds or not num_tokens:
        batch = batches[place % len(batches)]
        backend.score(batch)
        num_tokens += int(batch.lengths.sum())
        place += 1
    return num_tokens / took


def _batches(items: Sequence[EncodedItem], max_tokens: int) -> list[Batch]:
    """Full batches; a longer item goes alone."""
    parts: list[list[EncodedItem]] = [[]]
    for item in items:
        if parts[-1] and sum(one.num_tokens for one in parts[-1]) + item.num_tokens > max_tokens:
            parts.append([])
        parts[-1].append(item)
    return [Batch.of(part) for part in (parts[:-1] or parts)]
