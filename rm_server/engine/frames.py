"""How the server and its own worker processes talk over a socket: pickled tuples, each after its length."""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Iterator
from typing import Any

_LENGTH = struct.Struct("!Q")


def frame(message: Any) -> bytes:
    """The bytes of one message."""
    content = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(content)) + content


class FrameReader:
    """Puts messages together from pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are complete with these bytes."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            # Only ever our own process at the other end of a socket pair.
            yield pickle.loads(content)  # noqa: S301


def read_frames(connection: socket.socket) -> Iterator[Any]:
    """Messages as they come, until the other side is gone. Blocks."""
    reader = FrameReader()
    try:
        while data := connection.recv(1 << 18):
            yield from reader.feed(data)
    except ConnectionResetError:
        return
