"""How a version reads one item: the text as it was joined, and each token with the part of the item that it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from rm_server.backends.items import Content
from rm_server.registry.manifest import TruncationRule

Part: TypeAlias = Literal["prompt", "completion", "added"]
"""``added``: special tokens, and what the template writes."""


@dataclass(frozen=True, slots=True)
class ReadToken:
    """One token. ``text``: as the tokenizer spells it; empty where there is no tokenizer."""

    id: int
    text: str
    part: Part


@dataclass(frozen=True, slots=True)
class Reading:
    """What a version makes of one item.

    ``texts``: prompt and completion as the template joins them, before truncation; two for versions that read a pair;
    for rules over text, what they look at. Empty where ids came. ``tokens``: what is computed on, after truncation;
    empty for versions that look at text. ``num_tokens``: before truncation; for rules over text, characters.
    """

    texts: tuple[str, ...]
    tokens: tuple[ReadToken, ...]
    num_tokens: int
    truncation: TruncationRule


@runtime_checkable
class ExplainingEncoder(Protocol):
    """An encoder that can tell how it reads."""

    def explain(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> Reading:
        """How `Encoder.encode` reads the same item: the same ids. Raises what that raises."""
        ...
