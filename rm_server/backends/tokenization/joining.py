"""Prompt and completion become one text, by the version's template or, as chat messages, by its chat template.

They are joined before they are tokenised, so that a plain transformers user who tokenises the joined text gets the same
ids: two pieces could not merge at the seam.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import jinja2

from rm_server.backends.items import ChatMessage, Content, RenderedText
from rm_server.backends.json_file import first_line
from rm_server.backends.tokenization.plain_text import Text
from rm_server.errors import EmptyItem, UnsupportedContent
from rm_server.registry.manifest import CHAT_TEMPLATE, PAIR_TEMPLATE, Manifest

Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class JoinedText:
    """A text to tokenise, the spans of prompt and completion in it, and whether [CLS], BOS… are added.

    Of a pair, ``text`` is the two, and each span is in its own.
    """

    text: Text
    prompt: Span
    completion: Span
    adds_special_tokens: bool

    @property
    def texts(self) -> tuple[str, ...]:
        """One, or two."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def completion_segment(self) -> int:
        """The segment in which the completion's characters count; the prompt's is 0."""
        return len(self.texts) - 1


class Joiner:
    """``tokenizer``: a fast one of transformers, for its chat template and special tokens."""

    def __init__(self, tokenizer: Any, manifest: Manifest) -> None:
        self._tokenizer = tokenizer
        self._manifest = manifest
        self._begin_token: str = tokenizer.bos_token or tokenizer.cls_token or ""
        self._chat_begins_with = self._begin_token if self._is_chat_begun_by(self._begin_token) else ""

    def join(self, prompt: Content, completion: Content) -> JoinedText:
        """Text or messages, as the version's template joins them. Raises EmptyItem, UnsupportedContent."""
        has_messages = any(content and not isinstance(content, str) for content in (prompt, completion))
        if has_messages or (self._manifest.template == CHAT_TEMPLATE and prompt):
            return self._render_chat(_messages(prompt, "user"), _messages(completion, "assistant"))
        prompt_text, completion_text = cast(str, prompt or ""), cast(str, completion)
        if isinstance(completion, RenderedText) and self._manifest.reads_apart:
            prompt_text, completion_text = _apart(completion)
        if self._manifest.template == PAIR_TEMPLATE and prompt_text:
            spans = (0, len(prompt_text)), (0, len(completion_text))
            return JoinedText((prompt_text, completion_text), *spans, self._manifest.add_special_tokens)
        joined = self._join_texts(prompt_text, completion_text)
        return self._begun_once(joined) if isinstance(completion, RenderedText) else joined

    def _join_texts(self, prompt: str, completion: str) -> JoinedText:
        """Puts both into the template in one pass, so that braces in the content stay what they are.

        A completion without prompt stands alone: the pair is a single segment, and under a chat template it is text
        that somebody has rendered already (and so brings its own special tokens).
        """
        template = self._manifest.template
        if template in (PAIR_TEMPLATE, CHAT_TEMPLATE):
            adds = self._manifest.add_special_tokens and template == PAIR_TEMPLATE
            return JoinedText(completion, (0, 0), (0, len(completion)), adds)
        words = template.replace("{prompt}", "").replace("{completion}", "")
        if not prompt and words and "{prompt}" in template:
            raise EmptyItem(f"The item has no prompt, and the version's template {template!r} needs one.")
        text, spans = "", {"{prompt}": (0, 0), "{completion}": (0, 0)}
        for piece in re.split(r"(\{prompt\}|\{completion\})", template):
            start = len(text)
            text += prompt if piece == "{prompt}" else completion if piece == "{completion}" else piece
            if piece in spans:
                spans[piece] = (start, len(text))
        return JoinedText(text, spans["{prompt}"], spans["{completion}"], self._manifest.add_special_tokens)

    def _begun_once(self, rendered: JoinedText) -> JoinedText:
        """Sees to it that a rendered text begins with the version's special token, if it has one, and with one only."""
        (text,) = rendered.texts
        if self._begin_token and text.startswith(self._begin_token):
            return replace(rendered, adds_special_tokens=False)
        if self._manifest.template == CHAT_TEMPLATE and self._chat_begins_with:
            start, end = (position + len(self._chat_begins_with) for position in rendered.completion)
            return replace(rendered, text=self._chat_begins_with + text, completion=(start, end))
        return rendered

    def _is_chat_begun_by(self, token: str) -> bool:
        """Whether the tokenizer's chat template writes the token before the first message."""
        if not token or self._manifest.template != CHAT_TEMPLATE:
            return False
        try:
            chat = self._apply_chat_template([{"role": "user", "content": "."}], add_generation_prompt=False)
        except (jinja2.TemplateError, TypeError, ValueError):
            return False  # a template that takes other messages only: what is rendered by it is left as it comes
        return chat.startswith(token)

    def _render_chat(self, prompt: list[dict[str, str]], completion: list[dict[str, str]]) -> JoinedText:
        """Renders by the tokenizer's chat template, which writes the special tokens itself.

        The completion begins where the rendered prompt (ready for an answer) ends.
        """
        if not self._tokenizer.chat_template:
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
        return JoinedText(text, (0, start), (start, end), adds_special_tokens=False)

    def _apply_chat_template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text


def message_spans(text: str, prompt: Content, completion: Content) -> list[Span]:
    """Where the messages' own words are in a rendered chat; none where no messages came."""
    spans: list[Span] = []
    if isinstance(prompt, str) and isinstance(completion, str):
        return spans
    position = 0
    for content, role in ((prompt, "user"), (completion, "assistant")):
        for message in _messages(content, role):
            words = message["content"].strip()
            start = text.find(words, position) if words else -1
            if start >= 0:
                position = start + len(words)
                spans.append((start, position))
    return spans


def _apart(rendered: RenderedText) -> tuple[str, str]:
    """Prompt and completion; where that cannot be told, or there is no completion, the text stands alone."""
    prompt, completion = rendered.parts
    return (prompt, completion) if completion.strip() else ("", str(rendered))


def _common_length(left: str, right: str) -> int:
    """How many characters two texts begin with alike."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _messages(content: Content, role: str) -> list[dict[str, str]]:
    """Chat messages as the chat template takes them; text is one turn of ``role``."""
    if not content:
        return []
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    return [
        {"role": message.role, "content": message.content} for message in content if isinstance(message, ChatMessage)
    ]
