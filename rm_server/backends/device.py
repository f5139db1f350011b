"""What kind of machine a device is (measurements made on one kind say nothing about another), and whether it works."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from rm_server.backends.device_memory import is_out_of_memory
from rm_server.errors import UnsupportedArtifact

# What decides how fast a CPU multiplies, and in which precision: the same name comes with and without them.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_lost(device: str) -> bool:
    """Whether a GPU has failed this process for good; waits for what it computes. No CPU does, and none is asked.

    After a failed assertion or a wrong address in a kernel, all that a process asks of the GPU fails; other processes
    may go on. To want memory is no such failure.
    """
    if device.split(":")[0] != "cuda":
        return False
    import torch

    if not torch.cuda.is_initialized():  # What was not used is not lost, and to ask would take memory.
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return not is_out_of_memory(error)
    return False


@cache
def device_kind(device: str) -> str:
    """``cpu: NAME, N cores, INSTRUCTIONS`` or ``cuda: NAME``, for ``cpu``, ``cuda`` or ``cuda:1``.

    Raises UnsupportedArtifact for a GPU that is not there.
    """
    if device.split(":")[0] == "cuda":
        import torch

        try:
            return f"cuda: {torch.cuda.get_device_name(device)}"
        except (RuntimeError, AssertionError) as error:
            raise UnsupportedArtifact(f"The device {device!r} is asked for, and torch sees none: {error}") from error
    name, instructions = _cpu()
    return f"{device}: {name}, {num_cores()} cores{', ' if instructions else ''}{' '.join(instructions)}"


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Name and instructions, as far as the system tells (Linux does)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set(said.get("flags", said.get("Features", "")).split())
    name = said.get("model name") or platform.processor() or platform.machine()
    return " ".join(name.split()), tuple(flag for flag in _INSTRUCTIONS if flag in flags)
