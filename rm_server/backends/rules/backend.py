"""Encoder and backend of rules versions: no tokenizer, no weights, and the same bits whatever the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from rm_server.backends.explanation import Reading, ReadToken
from rm_server.backends.items import Batch, ChatMessage, Content, EncodedItem, Float64Array, RenderedText, is_ids
from rm_server.backends.rules.rule_list import RuleList
from rm_server.backends.tokenization.content_checks import check_length, check_unicode, checked_ids
from rm_server.backends.tokenization.plain_ids import plain_ids
from rm_server.backends.tokenization.truncation import BoolArray, kept_tokens
from rm_server.errors import EmptyItem, UnsupportedContent
from rm_server.registry.manifest import Manifest, TruncationRule

# Rules have no vocabulary; ids travel as 32 bits.
_ANY_ID = 2**31
_NAMES = {"token_ids": "token ids", "text": "text"}


class RulesEncoder:
    """Takes token ids for rules over ids; text, or the text of chat messages, for rules over text."""

    def __init__(self, rules: RuleList, manifest: Manifest) -> None:
        self._rules = rules
        self._manifest = manifest

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """Names and weights of what the score is the sum of; empty where it is one rule."""
        rules = self._rules.rules
        return tuple((rule.name, rule.scale.weight) for rule in rules) if len(rules) > 1 else ()

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        """Encodes one item; see `interface.Encoder`. Lengths over text are in characters."""
        if isinstance(completion, RenderedText):
            prompt, completion = completion.parts
        if not completion:
            raise EmptyItem("The item has no completion; at least one character, message or id is needed.")
        wanted = _NAMES[self._rules.looks_at]
        for content in (prompt, completion):
            came = _NAMES["token_ids" if is_ids(content) else "text"]
            if content and came != wanted:
                raise UnsupportedContent(f"This version's rules look at {wanted}, and {came} came; send {wanted}.")
        rule = truncation or self._manifest.truncation
        if self._rules.looks_at == "token_ids":
            item = self._of_ids(cast(tuple[int, ...], prompt or ()), cast(tuple[int, ...], completion), rule)
            has_prompt = item.completion_start > 0
        else:
            item = self._of_text(_text(prompt), _text(completion), rule)
            has_prompt = item.text is not None and bool(item.text[0])
        if not has_prompt and (names := self._rules.names_of_prompt_rules):
            left = " left after truncation" if item.truncated else ""
            raise EmptyItem(f"The item has no prompt{left}, and {', '.join(names)} looks at the prompt.")
        return item

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        """Ids that need no cutting; see `interface.Encoder`."""
        if self._rules.looks_at != "token_ids" or self._rules.names_of_prompt_rules:
            return [None] * len(pairs)
        return plain_ids(pairs, _ANY_ID, self._manifest.max_tokens) or [None] * len(pairs)

    def explain(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> Reading:
        """How it reads one item; see `explanation.ExplainingEncoder`."""
        item = self.encode(prompt, completion, truncation)
        rule = truncation or self._manifest.truncation
        if item.text is not None:
            return Reading(item.text, (), len(_text(prompt)) + len(_text(completion)), rule)
        tokens = tuple(
            ReadToken(token, "", "prompt" if index < item.completion_start else "completion")
            for index, token in enumerate(item.ids.tolist())
        )
        return Reading((), tokens, len(prompt) + len(completion), rule)

    def _of_ids(self, prompt: tuple[int, ...], completion: tuple[int, ...], rule: TruncationRule) -> EncodedItem:
        ids = checked_ids(tuple(prompt) + completion, _ANY_ID)
        if len(ids) <= (self._manifest.max_tokens or len(ids)):
            return EncodedItem(ids=ids, num_tokens=len(ids), completion_start=len(prompt))
        kept = self._kept(len(prompt), len(completion), rule)
        return EncodedItem(
            ids=ids[kept],
            num_tokens=int(kept.sum()),
            truncated=not kept.all(),
            completion_start=int(kept[: len(prompt)].sum()),
        )

    def _of_text(self, prompt: str, completion: str, rule: TruncationRule) -> EncodedItem:
        check_length(len(prompt) + len(completion), self._manifest.max_tokens)
        check_unicode(prompt + completion)
        if not completion:
            raise EmptyItem("The completion's messages have no content.")
        kept = self._kept(len(prompt), len(completion), rule)
        return EncodedItem(
            ids=np.empty(0, np.int32),
            num_tokens=int(kept.sum()),
            truncated=not kept.all(),
            text=(_characters(prompt, kept[: len(prompt)]), _characters(completion, kept[len(prompt) :])),
        )

    def _kept(self, num_prompt: int, num_completion: int, rule: TruncationRule) -> BoolArray:
        in_prompt = np.arange(num_prompt + num_completion) < num_prompt
        return kept_tokens(in_prompt, ~in_prompt, self._manifest.max_tokens or len(in_prompt), rule)


class RulesBackend:
    """Applies the rules to one item after another."""

    memory_bytes = 0
    precision = ""

    def __init__(self, rules: RuleList, manifest: Manifest) -> None:
        self._rules = rules
        self._manifest = manifest

    def score(self, batch: Batch) -> Float64Array:
        """Scores, shape (num_items,)."""
        return self._totals(self._parts(batch))

    def _totals(self, parts: list[list[float]]) -> Float64Array:
        scores = [self._rules.total(of_item) for of_item in parts]
        if self._manifest.transform == "sigmoid":
            scores = [0.5 * (1 + math.tanh(score / 2)) for score in scores]
        return np.array(scores, np.float64)

    def _parts(self, batch: Batch) -> list[list[float]]:
        if self._rules.looks_at == "text":
            return [self._rules.parts(prompt, completion) for prompt, completion in batch.texts or ()]
        ends = np.cumsum(batch.lengths, dtype=np.int64)
        starts = ends - batch.lengths
        return [
            self._rules.parts(batch.ids[start:middle], batch.ids[middle:end])
            for start, middle, end in zip(starts, starts + batch.completion_starts, ends, strict=True)
        ]


class SeveralRulesBackend(RulesBackend):
    """For several rules, whose values the callers see."""

    def score_parts(self, batch: Batch) -> tuple[Float64Array, Float64Array]:
        """Scores, shape (num_items,), and each rule's value before its weight, shape (num_items, num_rules)."""
        parts = self._parts(batch)
        return self._totals(parts), np.array(parts, np.float64).reshape(batch.num_items, len(self._rules.rules))


def _characters(text: str, kept: BoolArray) -> str:
    return text if kept.all() else "".join(text[index] for index in np.flatnonzero(kept))


def _text(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(message.content for message in content if isinstance(message, ChatMessage))
