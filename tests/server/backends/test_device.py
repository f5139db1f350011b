"""Kinds of devices: the same on the same machine, and said where there is none."""

from __future__ import annotations

import pytest
import torch

from rm_server.backends.device import device_kind, num_cores
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
