"""Workers with a GPU each: which one each of them sees, and how much memory they have together. No GPU is needed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import cast

import fake_versions as fake
import pytest
from fake_versions import running_engine

from rm_server.backends.compute_environment import nth_gpu
from rm_server.config import EngineSettings
from rm_server.engine.pool import Pool
from rm_server.engine.workers import DeathHandler, Worker, WorkerDied
from rm_server.metrics import Metrics


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1", "2"]), ("0,1,2", ["0", "1", "2"]), ("4, GPU-7f", ["4", "GPU-7f", ""]), ("", ["", "", ""])],
)
def test_each_sees_one_of_those_that_are_visible(visible: str | None, expected: list[str]) -> None:
    assert [nth_gpu(number, visible) for number in range(3)] == expected


def gpu_of(pid: int) -> str:
    variables = dict(entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if entry)
    return variables["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize(("device", "expected"), [("cuda", ["3", "5"]), ("cuda:1", ["3,5", "3,5"])])
async def test_a_worker_s_successor_has_its_gpu(
    device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    async with running_engine(workers=2, device=device) as engine:
        pids = engine.worker_pids
        assert [gpu_of(pid) for pid in pids] == expected
        os.kill(pids[0], signal.SIGKILL)
        await fake.until(lambda: len(engine.worker_pids) == 2 and pids[0] not in engine.worker_pids)
        assert [gpu_of(pid) for pid in engine.worker_pids] == expected


class GpuWorker:
    """Says how much is free on its GPU; None: it dies of the question."""

    is_alive = True
    pid = 1

    def __init__(self, free_bytes: int | None) -> None:
        self._free_bytes = free_bytes

    async def start(self, on_death: DeathHandler) -> None: ...

    async def stop(self) -> None: ...

    async def device_memory(self, device: str) -> int:
        if self._free_bytes is None:
            raise WorkerDied("of the question")
        return self._free_bytes


@pytest.mark.parametrize(
    ("device", "free_bytes", "expected"),
    [
        ("cuda", (50, 20, None), 3 * 20),
        ("cuda:0", (50, 20, None), 20),
        ("cuda", (None, None, None), None),
        ("cpu", (50, 20, None), None),
    ],
)
async def test_what_all_have_is_what_the_fullest_leaves(
    device: str, free_bytes: tuple[int | None, ...], expected: int | None
) -> None:
    pool = Pool(
        EngineSettings(device=device, workers=len(free_bytes)),
        lambda number: cast(Worker, GpuWorker(free_bytes[number])),
        Metrics(),
        lambda key, error: None,
    )
    await pool.start()
    try:
        assert await pool.device_memory(device) == expected
    finally:
        await pool._crew.stop()
