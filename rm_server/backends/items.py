"""An item on its way to a backend: what the caller sent, what the encoder made of it, and the batch it joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

Int32Array: TypeAlias = npt.NDArray[np.int32]
Float64Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One chat message."""

    role: str
    content: str


Content: TypeAlias = str | tuple[ChatMessage, ...] | tuple[int, ...]
"""Text, chat messages or token ids. The empty string stands for no content."""


def is_ids(content: Content) -> TypeGuard[tuple[int, ...]]:
    """Whether these are token ids. No content is of no kind."""
    return bool(content) and not isinstance(content, str) and not isinstance(content[0], ChatMessage)


def has_ids(pair: tuple[Content, Content]) -> bool:
    """Whether prompt or completion came as token ids."""
    return any(map(is_ids, pair))


def is_messages(content: Content) -> TypeGuard[tuple[ChatMessage, ...]]:
    """Whether these are chat messages. No content is of no kind."""
    return bool(content) and isinstance(content[0], ChatMessage)


class RenderedText(str):
    """Text that another program rendered for the model, and that stands alone as the completion.

    Some programs leave the special tokens at its beginning in (OpenRLHF), others take them out (verl): the version's
    own come in once, either way. ``prompt``: what it begins with, where the program said so, for versions that read
    prompt and completion apart.
    """

    __slots__ = ("prompt",)
    prompt: str

    def __new__(cls, text: str, prompt: str = "") -> RenderedText:
        rendered = super().__new__(cls, text)
        rendered.prompt = prompt
        return rendered

    @property
    def parts(self) -> tuple[str, str]:
        """Prompt and completion; where it does not begin with the prompt, the text stands alone."""
        return (self.prompt, self[len(self.prompt) :]) if self.startswith(self.prompt) else ("", str(self))


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """One prompt with one completion, ready for a backend.

    ``ids`` has shape (num_tokens,) and holds exactly what the model sees, special tokens included.
    ``type_ids`` has the same shape, or is None where all are 0. ``completion_start`` is the index in ``ids`` of
    the completion's first token (what rules look at; 0 for a network's text that was not cut). ``text`` is set instead
    of ``ids`` for rules over text: prompt and completion.
    """

    ids: Int32Array
    num_tokens: int
    truncated: bool = False
    completion_start: int = 0
    type_ids: Int32Array | None = None
    text: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Items, laid end to end: what travels to the process that computes.

    ``ids`` has shape (sum of lengths,), ``lengths`` and ``completion_starts`` have shape (num_items,). ``owners``, of
    the same shape, says which of several versions each item is for, an owner's items side by side; None: all are for
    one.
    """

    ids: Int32Array
    lengths: Int32Array
    completion_starts: Int32Array
    type_ids: Int32Array | None = None
    texts: tuple[tuple[str, str], ...] | None = None
    owners: Int32Array | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as bytes: numpy's own way takes three times as long for arrays as short as these."""
        arrays = self.ids, self.lengths, self.completion_starts, self.type_ids, self.owners
        return _unpacked, (
            self.texts,
            *(None if array is None else np.asarray(array, np.int32).tobytes() for array in arrays),
        )

    @property
    def num_items(self) -> int:
        """How many items, and so how many scores."""
        return len(self.lengths)

    @classmethod
    def of(cls, items: Sequence[EncodedItem], owners: Sequence[int] | None = None) -> Batch:
        """Lays the items end to end, in the order given."""
        has_types = any(item.type_ids is not None for item in items)
        return cls(
            ids=np.concatenate([item.ids for item in items]) if items else np.empty(0, np.int32),
            lengths=np.array([len(item.ids) for item in items], np.int32),
            completion_starts=np.array([item.completion_start for item in items], np.int32),
            type_ids=np.concatenate(
                [np.zeros_like(item.ids) if item.type_ids is None else item.type_ids for item in items]
            )
            if has_types
            else None,
            texts=tuple(item.text or ("", "") for item in items)
            if any(item.text is not None for item in items)
            else None,
            owners=None if owners is None else np.array(owners, np.int32),
        )


def _unpacked(
    texts: tuple[tuple[str, str], ...] | None,
    ids: bytes,
    lengths: bytes,
    completion_starts: bytes,
    type_ids: bytes | None,
    owners: bytes | None,
) -> Batch:
    return Batch(
        ids=np.frombuffer(ids, np.int32),
        lengths=np.frombuffer(lengths, np.int32),
        completion_starts=np.frombuffer(completion_starts, np.int32),
        type_ids=None if type_ids is None else np.frombuffer(type_ids, np.int32),
        texts=texts,
        owners=None if owners is None else np.frombuffer(owners, np.int32),
    )
