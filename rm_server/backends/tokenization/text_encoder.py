"""Text, chat messages or token ids become exactly the ids that the model sees.

Prompt and completion are tokenised in one piece (`joining`). The completion's first token is then found by characters:
it is the first token with a character of the completion (`Encoding.char_to_token`), so a token that spans the seam
belongs to the completion.
Nothing that a result depends on is changed after construction: one encoder serves all threads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from rm_server.backends.explanation import Reading, ReadToken
from rm_server.backends.items import Content, EncodedItem, Int32Array, is_ids
from rm_server.backends.json_file import first_line
from rm_server.backends.tokenization.content_checks import check_length, check_unicode, checked_ids, longest_text
from rm_server.backends.tokenization.joining import JoinedText, Joiner, Span, message_spans
from rm_server.backends.tokenization.plain_ids import plain_ids
from rm_server.backends.tokenization.plain_text import PlainText, Text
from rm_server.backends.tokenization.truncation import BoolArray, kept_tokens
from rm_server.errors import EmptyItem, InvalidTokenIds, RmError, UnsupportedContent
from rm_server.registry.manifest import Manifest, TruncationRule

_FIRST_CHARACTERS_PER_TOKEN = 4.0
_RATE_SHARE = 0.1
"""Of the characters per token: what is expected before any text came, and how much each new text says of the next."""

# No tokenizer drops these; white space and control characters may leave no token.
_VISIBLE = re.compile(r"[!-~]|\w")

Int64Array: TypeAlias = npt.NDArray[np.int64]


class TextEncoder:
    """The encoder of versions that have a tokenizer.

    ``tokenizer``: a fast one of transformers. ``vocabulary_size``: rows of the embedding. ``max_tokens`` 0: no limit.
    ``pad_id``: what is cut off at an item's end; None: nothing.
    """

    def __init__(
        self,
        tokenizer: Any,
        manifest: Manifest,
        *,
        vocabulary_size: int,
        max_tokens: int,
        uses_type_ids: bool,
        pad_id: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.manifest = manifest
        self.max_tokens = max_tokens
        self._vocabulary_size = vocabulary_size
        # Some tokenizers got tokens that the model never learnt.
        self._knows_more = len(tokenizer) > vocabulary_size
        self._uses_type_ids = uses_type_ids
        self._pad_id = pad_id
        self._special_ids = np.array(sorted(set(tokenizer.all_special_ids)), np.int32)
        self._eos_id: int | None = tokenizer.eos_token_id if manifest.append_eos else None
        self._joiner = Joiner(tokenizer, manifest)
        # The Rust tokenizer itself: transformers' wrapper changes its truncation and padding on every call.
        self._rust = tokenizer.backend_tokenizer
        self._rust.no_truncation()
        self._rust.no_padding()
        self._plain = PlainText.of(self._rust)
        # By this a text is expected to be cut or not. One way or the other its ids are the same.
        self._characters_per_token = _FIRST_CHARACTERS_PER_TOKEN

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """A network's score is one number."""
        return ()

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        """Encodes one item; see `interface.Encoder`."""
        rule = truncation or self.manifest.truncation
        if _are_ids(prompt, completion):
            item = self._of_ids(cast(tuple[int, ...], tuple(prompt)), cast(tuple[int, ...], completion), rule)
        else:
            joined = self._joiner.join(prompt, completion)
            item = self._finish(self._tokenized(joined), joined, rule)
        return item if self._pad_id is None else without_padding(item, self._pad_id)

    def explain(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> Reading:
        """How it reads one item; see `explanation.ExplainingEncoder`."""
        item = self.encode(prompt, completion, truncation)
        rule = truncation or self.manifest.truncation
        if _are_ids(prompt, completion):
            in_completion = np.arange(item.num_tokens) >= item.completion_start
            tokens = self._read_tokens(item.ids, ~in_completion, in_completion)
            return Reading((), tokens, len(prompt) + len(completion), rule)
        joined = self._joiner.join(prompt, completion)
        encoding = self._tokenized(joined)
        ids, _ = self._with_eos(*self._arrays(encoding))
        in_prompt, in_completion = self._cuttable(encoding, ids, joined)
        kept = kept_tokens(in_prompt, in_completion, self.max_tokens or len(ids), rule)
        if isinstance(joined.text, str) and (spans := message_spans(joined.text, prompt, completion)):
            written = _overlapping(_places(encoding), len(ids), spans)  # the rest is the chat template's
            in_prompt, in_completion = in_prompt & written, in_completion & written
        num_read = item.num_tokens  # without padding
        tokens = self._read_tokens(item.ids, in_prompt[kept][:num_read], in_completion[kept][:num_read])
        return Reading(joined.texts, tokens, len(ids), rule)

    def _read_tokens(self, ids: Int32Array, in_prompt: BoolArray, in_completion: BoolArray) -> tuple[ReadToken, ...]:
        texts = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        return tuple(
            ReadToken(token, text or "", "completion" if is_completion else "prompt" if is_prompt else "added")
            for token, text, is_prompt, is_completion in zip(ids.tolist(), texts, in_prompt, in_completion, strict=True)
        )

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        """Ids and texts that need no cutting; see `interface.Encoder`."""
        items = plain_ids(pairs, self._vocabulary_size, self.max_tokens) or self._whole_texts(pairs)
        if (pad_id := self._pad_id) is None:
            return items
        return [None if item is None else without_padding(item, pad_id) for item in items]

    def _whole_texts(self, pairs: Sequence[tuple[Content, Content]]) -> list[EncodedItem | None]:
        """Without the characters that each token stands for, which only cutting asks for: a fifth less time."""
        items: list[EncodedItem | None] = [None] * len(pairs)
        alike: dict[bool, list[tuple[int, Text]]] = {}
        for place, pair in enumerate(pairs):
            if (joined := self._joined_text(*pair)) is None:
                continue
            adds_special_tokens = joined.adds_special_tokens
            found = self._plain and self._plain.encode(joined.text, add_special_tokens=adds_special_tokens)
            if found:
                items[place] = self._whole(joined.text, *found)
            else:
                alike.setdefault(adds_special_tokens, []).append((place, joined.text))
        for adds_special_tokens, members in alike.items():
            texts = [text for _, text in members]
            encodings = self._rust.encode_batch_fast(texts, add_special_tokens=adds_special_tokens)
            for (place, text), encoding in zip(members, encodings, strict=True):
                items[place] = self._whole(text, *self._arrays(encoding))
        return items

    def _whole(self, text: Text, ids: Int32Array, type_ids: Int32Array | None) -> EncodedItem | None:
        """None: it has to be cut, or has no tokens, or one that the model does not know."""
        self._saw(text, len(ids))
        ids, type_ids = self._with_eos(ids, type_ids if self._uses_type_ids else None)
        if not 0 < len(ids) <= (self.max_tokens or len(ids)) or (self._knows_more and self._unknown(ids) is not None):
            return None
        return EncodedItem(ids, len(ids), type_ids=type_ids if _has_any(type_ids) else None)

    def _joined_text(self, prompt: Content, completion: Content) -> JoinedText | None:
        """None: no texts, or something is or may be wrong with them, or they will probably be cut."""
        if not isinstance(prompt, str) or not isinstance(completion, str) or not _VISIBLE.search(completion):
            return None
        num_characters = len(prompt) + len(completion)
        if self.max_tokens and num_characters > self._characters_per_token * self.max_tokens:
            return None
        if num_characters > longest_text(self.max_tokens):
            return None
        try:
            joined = self._joiner.join(prompt, completion)
            check_unicode("".join(joined.texts))
        except RmError:
            return None
        return joined

    def _tokenized(self, joined: JoinedText) -> Any:
        check_length(sum(map(len, joined.texts)), self.max_tokens)
        check_unicode("".join(joined.texts))
        try:
            # `encode` holds the GIL, so that a long text would stop the whole server; `encode_batch` lets go of it.
            encoding = self._rust.encode_batch([joined.text], add_special_tokens=joined.adds_special_tokens)[0]
        except Exception as error:  # tokenizers has no other class for what a text lacks, such as an unknown token
            raise UnsupportedContent(f"The version's tokenizer does not take the text: {first_line(error)}") from error
        self._saw(joined.text, len(encoding))
        return encoding

    def _saw(self, text: Text, num_tokens: int) -> None:
        """Learns from a text how many characters a token stands for."""
        if num_tokens:
            rate = (len(text) if isinstance(text, str) else sum(map(len, text))) / num_tokens
            self._characters_per_token += _RATE_SHARE * (rate - self._characters_per_token)

    def _arrays(self, encoding: Any) -> tuple[Int32Array, Int32Array | None]:
        """Ids, and type ids where the version uses them."""
        type_ids = np.array(encoding.type_ids, np.int32) if self._uses_type_ids else None
        return np.array(encoding.ids, np.int32), type_ids

    def _with_eos(self, ids: Int32Array, type_ids: Int32Array | None) -> tuple[Int32Array, Int32Array | None]:
        """EOS appended where it has to be and is not there."""
        if self._eos_id is not None and (not len(ids) or ids[-1] != self._eos_id):
            ids = np.append(ids, np.int32(self._eos_id))
            type_ids = (
                None if type_ids is None else np.append(type_ids, type_ids[-1:] if len(type_ids) else np.int32(0))
            )
        return ids, type_ids

    def _unknown(self, ids: Int32Array) -> int | None:
        """The first id for which the model has no embedding."""
        beyond = ids[ids >= self._vocabulary_size]
        return int(beyond[0]) if len(beyond) else None

    def _finish(self, encoding: Any, joined: JoinedText, rule: TruncationRule) -> EncodedItem:
        """Appends EOS and cuts."""
        ids, type_ids = self._with_eos(*self._arrays(encoding))
        completion_start = _first_token(encoding, joined.completion, joined.completion_segment)
        # Without an answer a prompt can be scored. What is left without both is the same for every such item.
        if completion_start == len(encoding) == _first_token(encoding, joined.prompt, 0):
            raise EmptyItem(
                "The item has no tokens of its own: its text is nothing but what the tokenizer drops (white space)."
            )
        if self._knows_more and (unknown := self._unknown(ids)) is not None:
            raise InvalidTokenIds(
                f"The text has the token {self.tokenizer.convert_ids_to_tokens(unknown)!r}, id {unknown}, and the "
                f"model has embeddings for {self._vocabulary_size} ids: its tokenizer got tokens that it never learnt."
            )
        if self.max_tokens and len(ids) > self.max_tokens:
            in_prompt, in_completion = self._cuttable(encoding, ids, joined)
            kept = kept_tokens(in_prompt, in_completion, self.max_tokens, rule)
            return self._cut(ids, type_ids, completion_start, kept)
        return EncodedItem(
            ids=ids,
            num_tokens=len(ids),
            completion_start=completion_start,
            type_ids=type_ids if _has_any(type_ids) else None,
        )

    def _cuttable(self, encoding: Any, ids: Int32Array, joined: JoinedText) -> tuple[BoolArray, BoolArray]:
        """Which tokens stand for characters of the prompt and of the completion, shape (num_tokens,) each."""
        stays, places = self._special_ends(ids), _places(encoding)
        in_prompt = _overlapping(places, len(ids), [joined.prompt]) & ~stays
        in_completion = _overlapping(places, len(ids), [joined.completion], joined.completion_segment) & ~stays
        return in_prompt & ~in_completion, in_completion

    def _special_ends(self, ids: Int32Array) -> BoolArray:
        """Marks the special tokens at both ends (BOS, [CLS]; EOS), which no truncation takes away."""
        ordinary = np.flatnonzero(~np.isin(ids, self._special_ids))
        ends = np.ones(len(ids), np.bool_)
        if len(ordinary):
            ends[ordinary[0] : ordinary[-1] + 1] = False
        return ends

    def _of_ids(self, prompt: tuple[int, ...], completion: tuple[int, ...], rule: TruncationRule) -> EncodedItem:
        """Ids are used as they are: no template, no special tokens, no EOS added."""
        ids = checked_ids(prompt + completion, self._vocabulary_size)
        item = EncodedItem(ids=ids, num_tokens=len(ids), completion_start=len(prompt))
        if self._pad_id is not None:  # which takes no room that the rest would need
            item = without_padding(item, self._pad_id)
        if not self.max_tokens or item.num_tokens <= self.max_tokens:
            return item
        ids, start = item.ids, item.completion_start
        ordinary = ~self._special_ends(ids)
        is_completion = np.arange(len(ids)) >= start
        kept = kept_tokens(ordinary & ~is_completion, ordinary & is_completion, self.max_tokens, rule)
        return self._cut(ids, None, start, kept)

    @staticmethod
    def _cut(ids: Int32Array, type_ids: Int32Array | None, completion_start: int, kept: BoolArray) -> EncodedItem:
        ids = ids[kept]
        type_ids = None if type_ids is None else type_ids[kept]
        return EncodedItem(
            ids=ids,
            num_tokens=len(ids),
            truncated=True,
            completion_start=int(kept[:completion_start].sum()),
            type_ids=type_ids if _has_any(type_ids) else None,
        )


def without_padding(item: EncodedItem, pad_id: int) -> EncodedItem:
    """The item up to its last token that is not the pad id; the first token, where there is no other."""
    if item.ids[-1] != pad_id:
        return item
    others = np.flatnonzero(item.ids != pad_id)
    num_tokens = int(others[-1]) + 1 if len(others) else 1
    return replace(
        item,
        ids=item.ids[:num_tokens],
        num_tokens=num_tokens,
        completion_start=min(item.completion_start, num_tokens),
        type_ids=None if item.type_ids is None else item.type_ids[:num_tokens],
    )


def _places(encoding: Any) -> tuple[Int64Array, Int64Array]:
    """Of each token of the text, its characters, shape (num_text_tokens, 2), and its segment; -1: of none."""
    segments = [-1 if number is None else number for number in encoding.sequence_ids]
    return np.array(encoding.offsets, np.int64).reshape(-1, 2), np.array(segments, np.int64)


def _overlapping(
    places: tuple[Int64Array, Int64Array], num_tokens: int, spans: Sequence[Span], segment: int = 0
) -> BoolArray:
    """Which tokens have a character in one of the spans of a segment, shape (num_tokens,)."""
    offsets, segments = places
    mask = np.zeros(num_tokens, np.bool_)
    for start, end in spans:
        mask[: len(offsets)] |= (offsets[:, 0] < end) & (offsets[:, 1] > start) & (segments == segment)
    return mask


def _has_any(type_ids: Int32Array | None) -> bool:
    return type_ids is not None and bool(type_ids.any())


def _first_token(encoding: Any, span: Span, segment: int) -> int:
    """Index of the first token with a character of the span; the number of tokens where there is none."""
    start, end = span
    token: int | None = encoding.char_to_token(start, segment) if start < end else None
    if token is not None:
        return token
    # The tokenizer drops what the span begins with, and that may be a million blanks. Each such question looks through
    # all tokens, so it is not asked of every character.
    found = np.flatnonzero(_overlapping(_places(encoding), len(encoding), [span], segment))
    return int(found[0]) if len(found) else len(encoding)


def _are_ids(prompt: Content, completion: Content) -> bool:
    """Whether token ids came. Raises EmptyItem without a completion, UnsupportedContent for ids and something else."""
    if not completion:
        raise EmptyItem("The item has no completion; at least one character, message or id is needed.")
    are_ids = {is_ids(content) for content in (prompt, completion) if content}
    if len(are_ids) > 1:
        raise UnsupportedContent("Prompt and completion are of different kinds; send both as token ids.")
    return are_ids == {True}
