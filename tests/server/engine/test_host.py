"""What a worker does with its versions, as far as it differs from device to device: failures, and memory."""

from __future__ import annotations

import pytest
import torch

from rm_server.engine.host import attempt
from rm_server.errors import InternalError, OutOfMemory


@pytest.mark.parametrize(
    ("error", "known_as"),
    [
        (MemoryError(), OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), OutOfMemory),
        (RuntimeError("CUDA error: device-side assert triggered"), InternalError),
    ],
)
def test_want_of_memory_is_told_from_other_failures(error: Exception, known_as: type[Exception]) -> None:
    def fail() -> None:
        raise error

    assert type(attempt("Loading m@1", fail)) is known_as
