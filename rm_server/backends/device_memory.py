"""A device's memory: how much of it is free, what is given back, and whether a failure was for want of it."""

from __future__ import annotations

import ctypes
from contextlib import suppress

LARGE_BYTES = 8 * 1024 * 1024

# Of torch's CPU allocator, of the driver where it is not torch that allocates (contexts, kernels) or where torch's
# expandable segments grow, of cuBLAS and cuDNN.
_SAID = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "_STATUS_ALLOC_FAILED",
)


def free_memory_of(device: str) -> int | None:
    """Bytes that a GPU still has for this process, torch's reserve included; None: it is no GPU that can be used."""
    if device.split(":")[0] != "cuda":
        return None
    import torch

    if not torch.cuda.is_available() or (torch.device(device).index or 0) >= torch.cuda.device_count():
        return None  # The load says that it is not there, or of no use.
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def give_back_memory(device: str) -> None:
    """Gives back what no other process could use: of the machine's memory what malloc keeps (glibc's alone can be told
    to), of a GPU's what torch holds in reserve.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if device.split(":")[0] != "cuda":
        return
    import torch

    torch.cuda.empty_cache()


def let_go_of(weight_bytes: int) -> None:
    """One weight after another of a whole model is let go of: what is large is given back at once, or holes into which
    nothing fits would take as much as all of them.
    """
    if weight_bytes >= LARGE_BYTES:
        give_back_memory("cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a failure for want of memory, which torch says in a class of its own or in words alone.

    Told by the name of the class: those who ask need not import torch.
    """
    if isinstance(error, RuntimeError):
        return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _SAID)
    return isinstance(error, MemoryError)
