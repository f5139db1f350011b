"""Messages come out as they went in, however the bytes are cut."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from rm_server.engine.frames import FrameReader, frame, read_frames


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_messages_survive_any_cut(piece: int) -> None:
    messages = [(1, "compute", ("m", 1)), (2, None), (3, "x" * 500)]
    data = b"".join(frame(message) for message in messages)
    reader = FrameReader()
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    assert [message for part in pieces for message in reader.feed(part)] == messages


def test_reads_until_the_other_side_closes() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(frame(np.arange(5)) + frame("end") + b"half a mess")
    with ours:
        array, end = read_frames(ours)
    assert (array.tolist(), end) == ([0, 1, 2, 3, 4], "end")
