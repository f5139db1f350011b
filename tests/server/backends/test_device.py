"""Kinds of devices: the same on the same machine, and said where there is none."""

from __future__ import annotations

import pytest
import torch

from rm_server.backends.device import device_kind, is_lost, num_cores
from rm_server.errors import UnsupportedArtifact


def test_a_cpu_is_named_with_its_cores() -> None:
    kind = device_kind("cpu")
    assert kind.startswith("cpu: ")
    assert f", {num_cores()} cores" in kind
    assert len(kind) <= 200


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(UnsupportedArtifact, match="'cuda:0' is asked for, and torch sees none"):
        device_kind("cuda:0")


@pytest.mark.parametrize(
    ("outcome", "lost"),
    [
        (None, False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
    ],
)
def test_a_gpu_is_lost_where_it_fails_at_nothing(
    monkeypatch: pytest.MonkeyPatch, outcome: Exception | None, lost: bool
) -> None:
    def synchronize(device: str) -> None:
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert is_lost("cuda:0") is lost
    assert not is_lost("cpu")


def test_a_gpu_that_was_not_used_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", pytest.fail)
    assert not is_lost("cuda:0")
