"""The loop of a worker process, run in a thread of the test over a socket pair."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import fake_versions as fake
import numpy as np
import pytest
import torch

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.engine.frames import frame, read_frames
from rm_server.engine.giving_way import NICENESS
from rm_server.engine.host import Computed, Host, LoadOrder, LoadReport
from rm_server.engine.worker_process import Link, serve
from rm_server.errors import InternalError, VersionNotLoaded, WeightsMismatch

KEY = ("m", 1)


class Connection:
    """The server's end."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(60)
        self._answers = read_frames(self.ours)
        self.thread = Thread(target=serve, args=(Link(theirs), Host("fake_versions:load_backend")))
        self.thread.start()
        self._theirs = theirs

    def send(self, *message: Any) -> None:
        self.ours.sendall(frame(message))

    def answer(self) -> Any:
        return next(self._answers)

    def close(self) -> None:
        self.ours.close()
        self.thread.join()
        self._theirs.close()


@pytest.fixture
def connection() -> Iterator[Connection]:
    made = Connection()
    yield made
    made.close()


def order(folder: Path, **options: object) -> LoadOrder:
    manifest = fake.make_version(folder, **options)
    return LoadOrder(KEY, folder, manifest, ComputeSettings(), (batch([1, 2], [4]), batch([6])))


def batch(*contents: list[int]) -> Batch:
    return Batch.of([EncodedItem(np.array(ids, np.int32), len(ids)) for ids in contents])


def test_loads_computes_and_unloads(connection: Connection, tmp_path: Path) -> None:
    connection.send(1, "load", order(tmp_path))
    number, report = connection.answer()
    assert isinstance(report, LoadReport)
    assert (number, report.memory_bytes, report.precision) == (1, 1000, "fp32")
    assert report.probe_scores.tolist() == [1.5, 2.0, 3.0]
    # The first trial batch twice: the first time warms up.
    assert fake.noted(tmp_path) == [2, 2, 1]

    connection.send(2, "compute", (KEY,), batch([8], [9]), False)
    number, computed = connection.answer()
    assert isinstance(computed, Computed)
    assert (number, computed.scores.tolist()) == (2, [4.0, 4.5])
    assert computed.seconds > 0

    connection.send(3, "unload", KEY)
    connection.send(4, "unload", KEY)
    connection.send(5, "compute", (KEY,), batch([8]), False)
    assert [connection.answer(), connection.answer()] == [(3, None), (4, None)]
    number, error = connection.answer()
    assert (number, type(error)) == (5, VersionNotLoaded)


def test_failures_are_answers(connection: Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    connection.send(1, "load", order(tmp_path, lacks_head=True))
    assert type(connection.answer()[1]) is WeightsMismatch
    connection.send(2, "load", order(tmp_path))
    connection.answer()
    connection.send(3, "compute", (KEY,), batch([fake.BAD]), False)
    _, error = connection.answer()
    assert isinstance(error, InternalError)
    # What the foreign error says is for the operator alone.
    assert error.message == "Scoring with m@1 failed; the server's log says why."
    assert "ValueError: a bad item" in caplog.text


def test_loads_and_batches_do_not_wait_for_one_another(connection: Connection, tmp_path: Path) -> None:
    connection.send(1, "load", order(tmp_path / "1"))
    connection.answer()
    connection.send(2, "load", replace(order(tmp_path / "2", waits=True), key=("m", 2)))
    connection.send(3, "compute", (KEY,), batch([fake.WAIT]), False)
    connection.send(4, "load", replace(order(tmp_path / "3"), key=("m", 3)))
    assert connection.answer()[0] == 4
    fake.open_gate(tmp_path / "1")
    assert connection.answer()[0] == 3
    fake.open_gate(tmp_path / "2")
    assert connection.answer()[0] == 2


def test_a_thread_that_breaks_ends_the_worker(connection: Connection) -> None:
    connection.send(1, "compute", "too few arguments")
    with pytest.raises(StopIteration):
        connection.answer()
    connection.thread.join()


@pytest.fixture
def lost_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As after a failed assertion. Grows with each time that it is asked."""
    asked: list[str] = []

    def synchronize(device: str) -> None:
        asked.append(device)
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return asked


def test_a_worker_whose_gpu_is_lost_ends(connection: Connection, tmp_path: Path, lost_gpu: list[str]) -> None:
    good = order(tmp_path)
    connection.send(1, "load", replace(good, settings=ComputeSettings(device="cuda:1")))
    assert isinstance(connection.answer()[1], LoadReport)
    assert not lost_gpu  # It is asked after failures only.
    connection.send(2, "compute", (KEY,), batch([fake.BAD]), False)
    with pytest.raises(StopIteration):
        connection.answer()
    connection.thread.join()
    assert lost_gpu == ["cuda:1"]


def test_a_worker_whose_gpu_is_lost_while_it_loads_ends(
    connection: Connection, tmp_path: Path, lost_gpu: list[str]
) -> None:
    broken = order(tmp_path, lacks_head=True)
    connection.send(1, "load", replace(broken, settings=ComputeSettings(device="cuda")))
    with pytest.raises(StopIteration):
        connection.answer()
    connection.thread.join()
    assert lost_gpu == ["cuda"]


def test_a_cpu_is_not_asked_whether_it_is_lost(connection: Connection, tmp_path: Path, lost_gpu: list[str]) -> None:
    connection.send(1, "load", order(tmp_path))
    connection.answer()
    connection.send(2, "compute", (KEY,), batch([fake.BAD]), False)
    assert type(connection.answer()[1]) is InternalError
    assert not lost_gpu


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities for threads")
def test_a_load_that_nobody_waits_for_gives_way_to_computing(connection: Connection, tmp_path: Path) -> None:
    for number, gives_way in enumerate((True, False), start=1):
        connection.send(number, "load", replace(order(tmp_path), gives_way=gives_way))
        connection.answer()
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert fake.noted(tmp_path, "niceness") == [min(19, usual + NICENESS), usual]
