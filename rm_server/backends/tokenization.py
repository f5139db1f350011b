"""Text, chat messages or token ids become exactly the ids that the model sees.

Prompt and completion are joined by the version's template first and tokenised in one piece, so that a plain
transformers user who tokenises the joined text gets the same ids (two pieces could not merge at the seam).
The completion's first token is then found by characters: it is the first token with a character of the completion
(`Encoding.char_to_token`), so a token that spans the seam belongs to the completion.
Nothing here is changed after construction: one encoder serves all threads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import jinja2
import numpy as np

from rm_server.backends.content_checks import check_unicode, checked_ids
from rm_server.backends.items import ChatMessage, Content, EncodedItem, Int32Array, RenderedText
from rm_server.backends.json_file import first_line
from rm_server.backends.plain_ids import plain_ids
from rm_server.backends.truncation import BoolArray, kept_tokens
from rm_server.errors import EmptyItem, UnsupportedContent
from rm_server.registry.manifest import CHAT_TEMPLATE, PAIR_TEMPLATE, Manifest, TruncationRule

Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Joined:
    """A text to tokenise, the spans of prompt and completion in it, and whether [CLS], BOS… are added."""

    text: str
    prompt: Span
    completion: Span
    adds_special_tokens: bool


class TextEncoder:
    """The encoder of versions that have a tokenizer.

    ``tokenizer``: a fast one of transformers. ``vocabulary_size``: rows of the embedding. ``max_tokens`` 0: no limit.
    """

    def __init__(
        self, tokenizer: Any, manifest: Manifest, *, vocabulary_size: int, max_tokens: int, uses_type_ids: bool
    ) -> None:
        self.tokenizer = tokenizer
        self.manifest = manifest
        self.max_tokens = max_tokens
        self._vocabulary_size = vocabulary_size
        self._uses_type_ids = uses_type_ids
        self._special_ids = np.array(sorted(set(tokenizer.all_special_ids)), np.int32)
        self._eos_id: int | None = tokenizer.eos_token_id if manifest.append_eos else None
        self._begin_token: str = tokenizer.bos_token or tokenizer.cls_token or ""
        self._chat_begins_with = self._begin_token if self._is_chat_begun_by(self._begin_token) else ""
        # The Rust tokenizer itself: transformers' wrapper changes its truncation and padding on every call.
        self._rust = tokenizer.backend_tokenizer
        self._rust.no_truncation()
        self._rust.no_padding()

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """A network's score is one number."""
        return ()

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        """Encodes one item; see `interface.Encoder`."""
        rule = truncation or self.manifest.truncation
        if not completion:
            raise EmptyItem("The item has no completion; at least one character, message or id is needed.")
        kinds = {_kind_of(content) for content in (prompt, completion) if content}
        if "ids" in kinds:
            if len(kinds) > 1:
                raise UnsupportedContent("Prompt and completion are of different kinds; send both as token ids.")
            return self._of_ids(cast(tuple[int, ...], tuple(prompt)), cast(tuple[int, ...], completion), rule)
        if "messages" in kinds or (self.manifest.template == CHAT_TEMPLATE and prompt):
            return self._of_text(self._render_chat(_messages(prompt, "user"), _messages(completion, "assistant")), rule)
        prompt_text, completion_text = cast(str, prompt or ""), cast(str, completion)
        if self.manifest.template == PAIR_TEMPLATE and prompt_text:
            return self._of_pair(prompt_text, completion_text, rule)
        joined = self._join(prompt_text, completion_text)
        return self._of_text(self._begun_once(joined) if isinstance(completion, RenderedText) else joined, rule)

    def encode_plain_ids(self, pairs: Sequence[tuple[Content, Content]]) -> list[EncodedItem] | None:
        """All at once; see `interface.Encoder`."""
        return plain_ids(pairs, self._vocabulary_size, self.max_tokens)

    def _join(self, prompt: str, completion: str) -> _Joined:
        """Puts both into the template in one pass, so that braces in the content stay what they are.

        A completion without prompt stands alone: the pair is a single segment, and under a chat template it is text
        that somebody has rendered already (and so brings its own special tokens).
        """
        template = self.manifest.template
        if template in (PAIR_TEMPLATE, CHAT_TEMPLATE):
            adds = self.manifest.add_special_tokens and template == PAIR_TEMPLATE
            return _Joined(completion, (0, 0), (0, len(completion)), adds)
        words = template.replace("{prompt}", "").replace("{completion}", "")
        if not prompt and words and "{prompt}" in template:
            raise EmptyItem(f"The item has no prompt, and the version's template {template!r} needs one.")
        text, spans = "", {"{prompt}": (0, 0), "{completion}": (0, 0)}
        for piece in re.split(r"(\{prompt\}|\{completion\})", template):
            start = len(text)
            text += prompt if piece == "{prompt}" else completion if piece == "{completion}" else piece
            if piece in spans:
                spans[piece] = (start, len(text))
        return _Joined(text, spans["{prompt}"], spans["{completion}"], self.manifest.add_special_tokens)

    def _begun_once(self, rendered: _Joined) -> _Joined:
        """Sees to it that a rendered text begins with the version's special token, if it has one, and with one only."""
        if self._begin_token and rendered.text.startswith(self._begin_token):
            return replace(rendered, adds_special_tokens=False)
        if self.manifest.template == CHAT_TEMPLATE and self._chat_begins_with:
            start, end = (position + len(self._chat_begins_with) for position in rendered.completion)
            return replace(rendered, text=self._chat_begins_with + rendered.text, completion=(start, end))
        return rendered

    def _is_chat_begun_by(self, token: str) -> bool:
        """Whether the tokenizer's chat template writes the token before the first message."""
        if not token or self.manifest.template != CHAT_TEMPLATE:
            return False
        try:
            chat = self._apply_chat_template([{"role": "user", "content": "."}], add_generation_prompt=False)
        except (jinja2.TemplateError, TypeError, ValueError):
            return False  # a template that takes other messages only: what is rendered by it is left as it comes
        return chat.startswith(token)

    def _render_chat(self, prompt: list[dict[str, str]], completion: list[dict[str, str]]) -> _Joined:
        """Renders by the tokenizer's chat template, which writes the special tokens itself.

        The completion begins where the rendered prompt (ready for an answer) ends.
        """
        if not self.tokenizer.chat_template:
            raise UnsupportedContent("The version's tokenizer has no chat template; send text or token ids.")
        try:
            text = self._apply_chat_template(prompt + completion, add_generation_prompt=False)
            before = self._apply_chat_template(prompt, add_generation_prompt=True) if prompt else ""
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in prompt + completion)
            raise UnsupportedContent(
                f"The version's chat template does not take these messages (roles: {roles}): {first_line(error)}"
            ) from error
        start = _common_length(before, text)
        last = completion[-1]["content"].strip()
        end = text.rfind(last) + len(last) if last and text.rfind(last) >= start else len(text)
        return _Joined(text, (0, start), (start, end), adds_special_tokens=False)

    def _apply_chat_template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    def _of_text(self, joined: _Joined, rule: TruncationRule) -> EncodedItem:
        check_unicode(joined.text)
        encoding = self._tokenized(joined.text, joined.adds_special_tokens)
        return self._finish(encoding, (joined.prompt, 0), (joined.completion, 0), rule)

    def _of_pair(self, prompt: str, completion: str, rule: TruncationRule) -> EncodedItem:
        check_unicode(prompt + completion)
        encoding = self._tokenized((prompt, completion), self.manifest.add_special_tokens)
        return self._finish(encoding, ((0, len(prompt)), 0), ((0, len(completion)), 1), rule)

    def _tokenized(self, text: str | tuple[str, str], adds_special_tokens: bool) -> Any:
        # `encode` holds the GIL, so that a long text would stop the whole server; `encode_batch` lets go of it.
        return self._rust.encode_batch([text], add_special_tokens=adds_special_tokens)[0]

    def _finish(
        self, encoding: Any, prompt: tuple[Span, int], completion: tuple[Span, int], rule: TruncationRule
    ) -> EncodedItem:
        """Appends EOS and cuts. ``prompt`` and ``completion``: a span and the segment that its characters count in."""
        ids = np.array(encoding.ids, np.int32)
        type_ids = np.array(encoding.type_ids, np.int32) if self._uses_type_ids else None
        if self._eos_id is not None and (not len(ids) or ids[-1] != self._eos_id):
            ids = np.append(ids, np.int32(self._eos_id))
            type_ids = (
                None if type_ids is None else np.append(type_ids, type_ids[-1:] if len(type_ids) else np.int32(0))
            )
        if not len(ids):
            raise EmptyItem("The item has no tokens: its text is nothing but what the tokenizer drops (white space).")
        completion_start = _first_token(encoding, *completion)
        if self.max_tokens and len(ids) > self.max_tokens:
            in_prompt, in_completion = self._cuttable(encoding, ids, prompt, completion)
            kept = kept_tokens(in_prompt, in_completion, self.max_tokens, rule)
            return self._cut(ids, type_ids, completion_start, kept)
        return EncodedItem(
            ids=ids,
            num_tokens=len(ids),
            completion_start=completion_start,
            type_ids=type_ids if type_ids is not None and type_ids.any() else None,
        )

    def _cuttable(
        self, encoding: Any, ids: Int32Array, prompt: tuple[Span, int], completion: tuple[Span, int]
    ) -> tuple[BoolArray, BoolArray]:
        """Which tokens stand for characters of the prompt and of the completion, shape (num_tokens,) each."""
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        segments = np.array([-1 if segment is None else segment for segment in encoding.sequence_ids])
        stays = self._special_ends(ids)
        masks = []
        for (start, end), segment in (prompt, completion):
            mask = np.zeros(len(ids), np.bool_)
            mask[: len(offsets)] = (offsets[:, 0] < end) & (offsets[:, 1] > start) & (segments == segment)
            masks.append(mask & ~stays)
        return masks[0] & ~masks[1], masks[1]

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
        start = len(prompt)
        if not self.max_tokens or len(ids) <= self.max_tokens:
            return EncodedItem(ids=ids, num_tokens=len(ids), completion_start=start)
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
            type_ids=type_ids if type_ids is not None and type_ids.any() else None,
        )


def _common_length(left: str, right: str) -> int:
    """How many characters two texts begin with alike."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _first_token(encoding: Any, span: Span, segment: int) -> int:
    """Index of the first token with a character of the span; the number of tokens where there is none."""
    for position in range(*span):
        token: int | None = encoding.char_to_token(position, segment)
        if token is not None:
            return token
    return len(encoding)


def _kind_of(content: Content) -> str:
    if isinstance(content, str):
        return "text"
    return "messages" if isinstance(content[0], ChatMessage) else "ids"


def _messages(content: Content, role: str) -> list[dict[str, str]]:
    """Chat messages as the chat template takes them; text is one turn of ``role``."""
    if not content:
        return []
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    return [
        {"role": message.role, "content": message.content} for message in content if isinstance(message, ChatMessage)
    ]
