"""The backend of ONNX versions: ONNX Runtime on padded items of similar length, or on one item at a time.

On a CPU padding costs more than sharing a run saves, but for the shortest items (tried on MiniLM-L6 with one thread and
lengths around 180: one item a run 4 000 tokens/s, runs of 1024 padded tokens 3 400, of 4096 2 300). One item a run is
also what makes scores bit-identical whatever the batch. The CUDA path has not been measured: experimental.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem, Float64Array, Int32Array
from rm_server.backends.json_file import read_json
from rm_server.backends.onnx.session import OnnxSession
from rm_server.registry.manifest import Manifest, Precision
from rm_server.registry.onnx_file import MODEL, read_onnx_file

logger = logging.getLogger(__name__)

MAX_PADDED_TOKENS = {"cpu": 256, "cuda": 16_384}
"""Items times the longest of them, in one run."""

# Its scale is taken over all that shares the run: a neighbour would change an item's score.
_SEES_NEIGHBOURS = "DynamicQuantizeLinear"
_CHECKED_LENGTHS = (5, 33, 1, 18, 9, 60)
_CHECKED_IDS = 4096


class OnnxBackend:
    """Scores with a session; used by one thread at a time. ``max_padded_tokens`` 0: one item a run."""

    def __init__(
        self, session: OnnxSession, manifest: Manifest, settings: ComputeSettings, *, memory_bytes: int
    ) -> None:
        self._session = session
        self._manifest = manifest
        self._memory_bytes = memory_bytes
        self.max_padded_tokens = 0
        if session.can_pad and not settings.deterministic:
            self.max_padded_tokens = MAX_PADDED_TOKENS[session.device.kind]

    @property
    def memory_bytes(self) -> int:
        """The size of the files, in bytes: ONNX Runtime does not say what it makes of them."""
        return self._memory_bytes

    @property
    def precision(self) -> Precision:
        """The file's own; what the settings ask for changes nothing in it."""
        return self._manifest.precision or "fp32"

    def score(self, batch: Batch) -> Float64Array:
        """Raw scores, shape (num_items,). Raises OutOfMemory.

        An item whose logit is not finite is computed again alone: no item fails for its neighbour's sake.
        """
        logits = np.empty(batch.num_items, np.float64)
        starts = np.cumsum(batch.lengths) - batch.lengths
        for members in self._runs(batch.lengths):
            logits[members] = self._logits(batch, starts, members)
            for index in members if len(members) > 1 else ():
                if not np.isfinite(logits[index]):
                    logits[[index]] = self._logits(batch, starts, [index])
        return _sigmoid(logits) if self._manifest.transform == "sigmoid" else logits

    def _runs(self, lengths: Int32Array) -> Iterator[list[int]]:
        """The items of each run, longest first, so that those of a run are about equally long."""
        run: list[int] = []
        for index in np.argsort(-lengths, kind="stable").tolist():
            if run and int(lengths[run[0]]) * (len(run) + 1) > self.max_padded_tokens:
                yield run
                run = []
            run.append(index)
        if run:
            yield run

    def _logits(self, batch: Batch, starts: npt.NDArray[np.int64], members: Sequence[int]) -> npt.NDArray[np.float32]:
        lengths = batch.lengths[list(members)]
        shape = (len(members), int(lengths.max()))
        ids, type_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, index in enumerate(members):
            span = slice(starts[index], starts[index] + batch.lengths[index])
            ids[row, : lengths[row]] = batch.ids[span]
            if batch.type_ids is not None:
                type_ids[row, : lengths[row]] = batch.type_ids[span]
        found: npt.NDArray[np.float32] = self._session.logits(ids, type_ids, lengths)[:, self._manifest.label_index]
        return found


def load_onnx_backend(folder: Path, manifest: Manifest, settings: ComputeSettings) -> OnnxBackend:
    """Opens ``model.onnx``. Items share a run only where that was seen to change nothing.

    Raises ArtifactUnreadable, UnsupportedArtifact, WeightsMismatch or OutOfMemory.
    """
    content = read_onnx_file(folder / MODEL)
    num_bytes = sum((folder / name).stat().st_size for name in (MODEL, *content.external))
    session = OnnxSession(folder / MODEL, settings)
    session.check_label(manifest.label_index)
    if session.device.kind == "cuda":
        logger.warning("%s: ONNX Runtime on CUDA is experimental here.", folder.name)
    backend = OnnxBackend(session, manifest, settings, memory_bytes=num_bytes)
    if _SEES_NEIGHBOURS in content.op_types:
        backend.max_padded_tokens = 0
    elif backend.max_padded_tokens:
        _check_neighbours(backend, folder, manifest)
    return backend


def _check_neighbours(backend: OnnxBackend, folder: Path, manifest: Manifest) -> None:
    """A file may come from any exporter: one that reads an item's end from a pad id, say, must get its items alone."""
    batch = _random_batch(folder, manifest.max_tokens)
    shared, budget = backend.score(batch), backend.max_padded_tokens
    backend.max_padded_tokens = 0
    alone = backend.score(batch)
    if np.allclose(shared, alone, rtol=1e-4, atol=1e-5 + 1e-3 * float(np.nanstd(alone)), equal_nan=True):
        backend.max_padded_tokens = budget
        return
    logger.warning(
        "%s is computed one item at a time: beside others its scores are up to %.2g off.",
        folder.name,
        float(np.nanmax(np.abs(shared - alone))),
    )


def _random_batch(folder: Path, max_tokens: int) -> Batch:
    config = read_json(folder / "config.json")
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 2
    random = np.random.default_rng(0)
    lengths = [min(length, max_tokens or length) for length in _CHECKED_LENGTHS]
    items = [random.integers(0, min(size, _CHECKED_IDS), length).astype(np.int32) for length in lengths]
    return Batch.of([EncodedItem(ids=ids, num_tokens=len(ids)) for ids in items])


def _sigmoid(logits: Float64Array) -> Float64Array:
    """1 / (1 + e^-x), by way of tanh, which never overflows."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))
