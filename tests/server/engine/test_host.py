"""What a worker does with its versions, as far as it differs from device to device: failures, and memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fake_versions as fake
import numpy as np
import psutil
import pytest
import torch

from rm_server.backends.interface import ComputeSettings
from rm_server.engine.host import Host, LoadOrder, LoadReport, attempt
from rm_server.errors import InternalError, OutOfMemory

KEY = ("m", 1)


def order(folder: Path, device: str, **options: object) -> LoadOrder:
    return LoadOrder(KEY, folder, fake.make_version(folder, **options), ComputeSettings(device=device), ())


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


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_s_memory_is_given_back_after_a_load_whatever_came_of_it_and_an_unload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    others, in_memory = len(fake.LIVE), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: in_memory.append(len(fake.LIVE) - others))
    host = Host("fake_versions:load_backend")
    assert isinstance(host.load(order(tmp_path / "broken", device, needs_memory=True)), OutOfMemory)
    assert in_memory == [0]
    assert isinstance(host.load(order(tmp_path / "good", device)), LoadReport)
    assert in_memory == [0, 1]
    host.unload(KEY)
    host.unload(KEY)  # It is gone.
    assert in_memory == [0, 1, 0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is asked to give back only on Linux")
def test_what_a_load_took_for_a_while_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def load(*arguments: Any) -> Any:
        for_a_while = [np.ones(10_000) for _ in range(2_500)]  # 200 MB in pieces that malloc does not map by themselves
        kept.append(np.ones(10_000))  # behind them, so that the heap does not shrink by itself
        del for_a_while
        return made(*arguments)

    made = fake.load_backend
    monkeypatch.setattr(fake, "load_backend", load)
    before = psutil.Process().memory_info().rss
    assert isinstance(Host("fake_versions:load_backend").load(order(tmp_path, "cpu")), LoadReport)
    assert psutil.Process().memory_info().rss - before < 50e6


def test_on_a_cpu_no_gpu_is_asked_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", pytest.fail)
    host = Host("fake_versions:load_backend")
    host.load(order(tmp_path, "cpu"))
    host.unload(KEY)


def test_an_unload_does_not_fail_where_the_gpu_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    host = Host("fake_versions:load_backend")
    host.load(order(tmp_path, "cuda"))
    host.unload(KEY)
