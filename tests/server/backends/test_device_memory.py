"""Want of memory is known by what torch raises for it, and by nothing else."""

from __future__ import annotations

import pytest
import torch

from rm_server.backends.device_memory import free_memory_of, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_want_of_memory_has_many_names(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("an item about machines that can't allocate memory"),
    ],
)
def test_other_failures_are_none(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_cpu_is_not_asked_for_free_memory() -> None:
    assert free_memory_of("cpu") is None


@pytest.mark.parametrize(
    ("device", "num_gpus", "is_available"),
    [("cuda", 0, False), ("cuda:0", 0, False), ("cuda:1", 1, True), ("cuda:0", 1, False)],
)
def test_a_gpu_that_is_not_there_or_has_no_driver_for_torch_is_not_asked_either(
    monkeypatch: pytest.MonkeyPatch, device: str, num_gpus: int, is_available: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(torch.cuda, "mem_get_info", pytest.fail)
    assert free_memory_of(device) is None
