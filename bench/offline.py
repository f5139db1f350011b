"""The ceiling: the same forward passes in processes of their own, with no server; and transformers by hand."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.workload import Item
from rm_server.backends.compute_environment import compute_environment, environment_for_children

BATCH_TOKENS = 4096
BATCH_ITEMS = 512
_PADDED_ITEMS = 32
_TIMEOUT_S = 300.0

# In a process: a way of computing takes items and gives a function that computes the next batch and returns its tokens.
Steps = Callable[[], int]


class Offline:
    """``workers`` processes with ``threads`` threads each that compute the same, all at once; ends with its block.

    ``as_served``: in the environment of the service's own workers; else in one that nobody has tuned.
    """

    def __init__(self, *, workers: int, threads: int, as_served: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._links: list[Connection] = []
        self._processes: list[Any] = []
        with environment_for_children(compute_environment(threads) if as_served else {"OMP_NUM_THREADS": str(threads)}):
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
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

    def load(self, name: str, folder: Path, way: str, precision: str, items: Sequence[Item]) -> None:
        """Loads a model under a name. ``way``: packed (our forward), padded or bare (transformers, see `_WAYS`).

        Each process gets every W-th of the items.
        """
        shares = [list(items[start :: len(self._links)]) for start in range(len(self._links))]
        self._ask([("load", name, folder, way, precision, share) for share in shares])

    def tokens_per_s(self, name: str, seconds: float) -> float:
        """Of all processes together, while all of them are busy. Ends after the batch in which the time is over."""
        runs: list[list[tuple[int, float]]] = self._ask([("run", name, seconds)] * len(self._links))
        return sum(sum(tokens for tokens, _ in steps) / sum(took for _, took in steps) for steps in runs)

    def step_seconds(self, name: str, seconds: float) -> list[float]:
        """How long each step took, in all processes."""
        return [took for steps in self._ask([("run", name, seconds)] * len(self._links)) for _, took in steps]

    def _ask(self, messages: Sequence[tuple[Any, ...]]) -> list[Any]:
        for link, message in zip(self._links, messages, strict=True):
            link.send(message)
        answers = []
        for link in self._links:
            if not link.poll(_TIMEOUT_S):
                raise RuntimeError(f"An offline process did not answer within {_TIMEOUT_S} s.")
            answers.append(link.recv())
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(f"An offline process failed: {answer}")
        return answers


def _serve(link: Connection, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    loaded: dict[str, Steps] = {}
    while True:
        try:
            what, name, *arguments = link.recv()
        except EOFError:
            return
        try:
            if what == "load":
                folder, way, precision, items = arguments
                loaded[name] = _WAYS[way](folder, precision, threads, items)
                loaded[name]()
                link.send([])
            else:
                link.send(_timed(loaded[name], *arguments))
        except Exception as error:
            link.send(f"{type(error).__name__}: {error}")


def _timed(step: Steps, seconds: float) -> list[tuple[int, float]]:
    steps = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        steps.append((step(), time.perf_counter() - start))
    return steps


def _packed(folder: Path, precision: str, threads: int, items: Sequence[Item]) -> Steps:
    """The service's own backend over batches that were tokenised and laid out before."""
    from rm_server.backends.interface import ComputeSettings
    from rm_server.backends.items import Batch
    from rm_server.backends.loading import load_backend, load_encoder
    from rm_server.engine.batcher import in_batches
    from rm_server.registry.manifest import read_manifest

    manifest = read_manifest(folder)
    encoder = load_encoder(folder, manifest)
    backend = load_backend(folder, manifest, ComputeSettings(precision=precision, threads=threads))  # type: ignore[arg-type]
    encoded = [encoder.encode(item.prompt, item.completion) for item in items]
    batches = [Batch.of(part) for part in in_batches(encoded, BATCH_TOKENS, BATCH_ITEMS)]
    # The last one is short, which no busy service ever sees.
    return _in_turn(batches[:-1] or batches, lambda batch: (backend.score(batch), int(batch.lengths.sum()))[1])


def _padded(folder: Path, precision: str, threads: int, items: Sequence[Item]) -> Steps:
    """transformers by hand: texts in batches of 32 as they come, padded to the longest, tokenisation included."""
    score = transformers_scorer(folder, precision)
    parts = [items[start : start + _PADDED_ITEMS] for start in range(0, len(items), _PADDED_ITEMS)]

    def step(part: Sequence[Item]) -> int:
        score([item.text for item in part])
        return sum(item.num_tokens for item in part)

    return _in_turn(parts, step)


def _bare(folder: Path, precision: str, threads: int, items: Sequence[Item]) -> Steps:
    """transformers by hand: one text at a time, tokenisation included."""
    score = transformers_scorer(folder, precision)

    def step(item: Item) -> int:
        score([item.text])
        return item.num_tokens

    return _in_turn(items, step)


_WAYS: dict[str, Callable[[Path, str, int, Sequence[Item]], Steps]] = {
    "packed": _packed,
    "padded": _padded,
    "bare": _bare,
}


def _in_turn(work: Sequence[Any], step: Callable[[Any], int]) -> Steps:
    place = -1

    def next_step() -> int:
        nonlocal place
        place = (place + 1) % len(work)
        return step(work[place])

    return next_step


def transformers_scorer(folder: Path, precision: str) -> Callable[..., list[float]]:
    """What a user of transformers writes: tokenizer, padding, model, logits.

    The function takes texts and, if it is given, a text that comes before each of them as the first of a pair.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    max_tokens = model.config.max_position_embeddings

    def score(texts: list[str], before: str = "") -> list[float]:
        pair = ([before] * len(texts), texts) if before else (texts,)
        with torch.inference_mode():
            inputs = tokenizer(*pair, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
            scores: list[float] = model(**inputs).logits[:, 0].float().tolist()
        return scores

    return score
