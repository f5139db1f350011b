"""The fields of a data file's row: contents, names, and what tells them apart; every complaint names the place."""

from __future__ import annotations

import hashlib

from rm_server.backends.items import ChatMessage, Content
from rm_server.training.data_files import BadData, Row


def content_of(row: Row, name: str, place: str) -> Content:
    """The field as text, chat messages (objects with role and content) or token ids.

    Raises BadData when it is missing, empty or of another form.
    """
    value = row.get(name)
    if value is None and name in row:
        raise BadData(f"{place}: `{name}` is null.")
    if value is None:
        raise BadData(f"{place} has no `{name}`; it has {', '.join(map(repr, row)) or 'nothing'}.")
    if not value:
        raise BadData(f"{place}: `{name}` is empty.")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if all(type(token) is int for token in value):
            return tuple(value)
        if all(isinstance(message, dict) for message in value):
            return tuple(_message_of(message, name, place) for message in value)
    raise BadData(f"{place}: `{name}` must be text, a list of messages with role and content, or a list of token ids.")


def _message_of(message: Row, name: str, place: str) -> ChatMessage:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadData(f"{place}: each message of `{name}` needs `role` and `content`, both text; got {message!r:.200}.")
    if message.get("tool_calls"):
        raise BadData(
            f"{place}: a message of `{name}` has `tool_calls`, which are not read; write them into its `content`, or "
            "leave the row out."
        )
    return ChatMessage(role, content)


def name_of(row: Row, name: str, place: str) -> str | None:
    """An optional field that names something: text, or a whole number. None where it is missing."""
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    raise BadData(f"{place}: `{name}` must be text or a whole number, not {value!r:.100}.")


def key_of(content: Content) -> str:
    """A short text that is the same for the same content only: SHA-256 of its form."""
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()


def length_of(content: Content) -> int:
    """Characters of a text or of the messages' contents; of token ids, how many there are."""
    if isinstance(content, str):
        return len(content)
    return sum(len(part.content) if isinstance(part, ChatMessage) else 1 for part in content)
