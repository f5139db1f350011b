"""What a family of reward models has to offer: an encoder (beside the event loop) and a backend (where it computes)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rm_server.backends.items import Batch, Content, EncodedItem, Float64Array
from rm_server.registry.manifest import Precision, TruncationRule


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """How a backend computes. ``prepack``: oneDNN weights on CPU.

    ``threads`` 0: the library's default. ``threads_alone``: while no other worker computes; 0: ``threads``.
    ``keeps_file_type``: weights that a checkpoint has in bf16 or fp16 stay so for fp32, too, and are widened where they
    are used: the scores of fp32, in half the memory and more time.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    threads: int = 0
    threads_alone: int = 0
    prepack: bool = True
    deterministic: bool = False
    keeps_file_type: bool = False


class Encoder(Protocol):
    """Turns prompt and completion into tokens. Thread-safe: several calls run at once."""

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """Names and weights of what the score is the sum of; empty where it is one number."""
        ...

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        """Encodes one item; ``truncation`` None: the manifest's rule.

        Raises EmptyItem, InvalidTokenIds, ItemTooLong or UnsupportedContent.
        """
        ...

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        """Encodes at once those of the pairs that `encode` would neither cut nor refuse.

        None where that is not so, or where it is not known before a closer look. Where it raises, `encode` says which
        of them is to blame.
        """
        ...


class Backend(Protocol):
    """Turns a batch into raw scores. Used by one thread at a time."""

    @property
    def memory_bytes(self) -> int:
        """What the version takes here, in bytes."""
        ...

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16``, ``fp16`` or ``int8``; empty where there are no weights."""
        ...

    def score(self, batch: Batch) -> Float64Array:
        """Raw scores, shape (num_items,), in the batch's order. They may be non-finite: the engine refuses those.

        Raises OutOfMemory when the device cannot hold the batch.
        """
        ...


@runtime_checkable
class PartsBackend(Protocol):
    """A backend that can tell what its scores are the sum of."""

    def score_parts(self, batch: Batch) -> tuple[Float64Array, Float64Array]:
        """What `Backend.score` gives, and the parts before their weights, shape (num_items, num_parts)."""
        ...


@runtime_checkable
class Stretches(Protocol):
    """A backend that can compute with more threads while no other worker computes."""

    def stretch(self, is_alone: bool) -> None:
        """How what this thread computes next is computed: with ``threads_alone`` of the settings, or ``threads``."""
        ...


@runtime_checkable
class SharesPrefixes(Protocol):
    """A backend that computes once what neighbours in a batch begin with."""

    @property
    def shares_up_to(self) -> int:
        """It does so where neither of the two has more tokens; 0: never."""
        ...


@runtime_checkable
class MixesVersions(Protocol):
    """A backend that can compute one batch together with others."""

    @property
    def mixes_with(self) -> str:
        """Backends of one worker for which this is the same can share a batch; empty: it shares none."""
        ...

    def score_mixed(self, backends: Sequence[MixesVersions], batch: Batch) -> Float64Array:
        """As `Backend.score`, each item by the one of ``backends`` that ``batch.owners`` gives the place of."""
        ...


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Memory that several backends of a worker use together. ``name`` says of which two that is so."""

    name: str
    num_bytes: int


@runtime_checkable
class SharesMemory(Protocol):
    """A backend whose `memory_bytes` are its own alone, beside what it shares."""

    @property
    def shared_memory(self) -> SharedMemory:
        """What it shares with others."""
        ...
