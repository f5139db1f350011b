"""Worker processes that die, and the engine that goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_versions as fake
import pytest
from fake_versions import items, outcomes, running_engine

from rm_server.engine import crew, workers
from rm_server.engine.engine import Engine
from rm_server.engine.loader import LoadTerms
from rm_server.errors import CatalogUnavailable, RmError, VersionNotLoaded, WorkerFailed

KEY = ("m", 1)


async def load(engine: Engine, folder: Path, key: tuple[str, int] = KEY, **options: object) -> None:
    await engine.load(key, folder, fake.make_version(folder, **options), "fp32")


def is_running(pid: int) -> bool:
    """Not counting the dead that nobody has buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_batch_of_a_killed_worker_is_computed_again(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=workers) as engine:
        await load(engine, tmp_path)
        pids = engine.worker_pids
        assert await outcomes(engine.submit(KEY, items([2], [fake.KILL], [4]))) == [1.0, fake.KILL / 2, 2.0]
        assert fake.was_killed(tmp_path)
        # Another process has come, with the version in it.
        await fake.until(lambda: len(engine.worker_pids) == workers)
        assert len(set(pids) & set(engine.worker_pids)) == workers - 1
        futures = [future for n in range(8) for future in engine.submit(KEY, items([n, fake.WAIT]), use_cache=False)]
        fake.open_gate(tmp_path)
        assert await outcomes(futures) == [(n + fake.WAIT) / 2 for n in range(8)]


async def test_an_item_that_kills_fails_neither_its_neighbours_nor_the_next_in_the_pipe(tmp_path: Path) -> None:
    async with running_engine(workers=1, max_batch_tokens=8) as engine:
        await load(engine, tmp_path)
        guilty = engine.submit(KEY, items([1, 2], [fake.ALWAYS_KILL], [3, 4], [5, 6, 7]))
        innocent = engine.submit(KEY, items([1] * 8, [2] * 8))
        assert await outcomes(guilty) == [1.5, WorkerFailed, 3.5, 9.0]
        assert await outcomes(innocent) == [4.0, 8.0]


async def test_a_worker_that_lost_its_gpu_is_replaced_and_what_lost_it_is_given_up(tmp_path: Path) -> None:
    async with running_engine(workers=1) as engine:
        await load(engine, tmp_path)
        assert await outcomes(engine.submit(KEY, items([2], [fake.LOSES_GPU], [4]))) == [1.0, WorkerFailed, 2.0]
        assert await outcomes(engine.submit(KEY, items([6]))) == [3.0]


async def test_a_version_that_kills_each_new_worker_is_given_up_and_the_others_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "FIRST_PAUSE_S", 0.01)
    async with running_engine(workers=1) as engine:
        lost: list[tuple[tuple[str, int], RmError]] = []
        engine.on_lost = lambda key, error: lost.append((key, error))
        await load(engine, tmp_path / "1")
        await load(engine, tmp_path / "2", ("m", 2))
        fake.make_version(tmp_path / "2", is_fatal=True)
        (pid,) = engine.worker_pids
        os.kill(pid, signal.SIGKILL)
        await fake.until(lambda: bool(lost))
        assert [(key, type(error)) for key, error in lost] == [(("m", 2), WorkerFailed)]
        assert list(engine.loaded) == [KEY]
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities for threads")
async def test_what_a_new_worker_loads_gives_way_to_nobody(tmp_path: Path) -> None:
    """Beside other busy programs, calls would wait for minutes until one serves again."""
    async with running_engine(workers=1) as engine:
        await engine.load(KEY, tmp_path, fake.make_version(tmp_path), "fp32", LoadTerms(gives_way=True))
        os.kill(engine.worker_pids[0], signal.SIGKILL)
        await fake.until(lambda: len(fake.noted(tmp_path, "niceness")) == 2)
        first, again = fake.noted(tmp_path, "niceness")
        assert again == os.getpriority(os.PRIO_PROCESS, 0) < first


async def test_a_killed_worker_is_noticed_while_it_is_idle(tmp_path: Path) -> None:
    async with running_engine(workers=1) as engine:
        await load(engine, tmp_path)
        (pid,) = engine.worker_pids
        os.kill(pid, signal.SIGKILL)
        await fake.until(lambda: engine.worker_pids not in ([], [pid]))
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]


async def test_a_worker_that_hangs_is_replaced_and_its_batch_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crew, "WATCH_S", 0.01)
    async with running_engine(workers=1, batch_timeout_s=0.2) as engine:
        await load(engine, tmp_path)
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]
        (pid,) = engine.worker_pids
        await asyncio.sleep(0.3)
        assert engine.worker_pids == [pid], "who has nothing to do does not hang"
        os.kill(pid, signal.SIGSTOP)
        assert await outcomes(engine.submit(KEY, items([4], [6]))) == [2.0, 3.0]
        assert engine.worker_pids != [pid]
        assert any("has computed one batch for too long" in record.getMessage() for record in caplog.records)


async def test_a_terminals_signals_do_not_end_a_worker(tmp_path: Path) -> None:
    async with running_engine(workers=1) as engine:
        await load(engine, tmp_path)
        (pid,) = engine.worker_pids
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]
        assert engine.worker_pids == [pid]
        assert os.getpgid(pid) != os.getpgid(0)


async def test_a_load_that_kills_the_worker_is_refused_and_not_tried_again(tmp_path: Path) -> None:
    async with running_engine(workers=1) as engine:
        await load(engine, tmp_path / "good")
        with pytest.raises(WorkerFailed, match="m@2"):
            await load(engine, tmp_path / "fatal", ("m", 2), is_fatal=True)
        assert list(engine.loaded) == [KEY]
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]


async def test_a_version_that_cannot_be_loaded_again_is_lost_and_the_others_are_not(tmp_path: Path) -> None:
    async with running_engine(workers=1) as engine:
        lost: list[tuple[tuple[str, int], RmError]] = []
        engine.on_lost = lambda key, error: lost.append((key, error))
        await load(engine, tmp_path / "1")
        await load(engine, tmp_path / "2", ("m", 2))
        fake.make_version(tmp_path / "2", factor=0.7)
        (pid,) = engine.worker_pids
        os.kill(pid, signal.SIGKILL)
        futures = engine.submit(("m", 2), items([2]))
        assert await outcomes(futures) == [VersionNotLoaded]
        assert [(key, type(error).__name__) for key, error in lost] == [(("m", 2), "GoldenMismatch")]
        assert list(engine.loaded) == [KEY]
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]


async def test_what_waited_for_a_version_that_is_lost_for_now_may_be_sent_again(tmp_path: Path) -> None:
    def verify() -> None:
        raise CatalogUnavailable("as if the store were away", retry_after_s=2.0)

    async with running_engine(workers=1) as engine:
        await engine.load(KEY, tmp_path, fake.make_version(tmp_path), "fp32", LoadTerms(verify))
        (pid,) = engine.worker_pids
        os.kill(pid, signal.SIGKILL)
        assert await outcomes(engine.submit(KEY, items([2]))) == [WorkerFailed]
        assert not engine.loaded


async def test_while_no_worker_can_be_started_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "FIRST_PAUSE_S", 0.01)
    told: list[bool] = []
    async with running_engine(workers=1) as engine:
        engine.on_workers = lambda: told.append(engine.is_down)
        await load(engine, tmp_path)
        (pid,) = engine.worker_pids
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/bin/false")
            os.kill(pid, signal.SIGKILL)
            await fake.until(lambda: engine.worker_pids == [])
            assert await outcomes(engine.submit(KEY, items([2]))) == [WorkerFailed]
            assert told[-1]
            with pytest.raises(WorkerFailed) as refused:
                engine.submit(KEY, items([2]))
            assert refused.value.retry_after_s
            with pytest.raises(WorkerFailed):
                await load(engine, tmp_path, ("m", 2))
        await fake.until(lambda: len(engine.worker_pids) == 1)
        assert not told[-1]
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), RuntimeError("a defect")])
async def test_a_start_that_fails_unexpectedly_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(crew, "FIRST_PAUSE_S", 0.01)
    popen = subprocess.Popen
    failures = [error, error]

    def fail_twice(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        if failures:
            raise failures.pop()
        return popen(*arguments, **options)

    async with running_engine(workers=1) as engine:
        await load(engine, tmp_path)
        (pid,) = engine.worker_pids
        monkeypatch.setattr(subprocess, "Popen", fail_twice)
        os.kill(pid, signal.SIGKILL)
        await fake.until(lambda: engine.worker_pids not in ([], [pid]))
        assert not failures
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]


async def test_a_process_that_cannot_be_made_leaves_no_socket_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerFailed, match="Cannot allocate memory") as failed:
        await workers.ProcessWorker("none:none", threads=1).start(lambda worker, reason: None)
    # While the trace still holds all that was not closed.
    assert failed.tb is not None
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_server_writes_the_log_of_its_workers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running_engine(workers=1) as engine:
        await load(engine, tmp_path)
        await outcomes(engine.submit(KEY, items([fake.BAD])))
        (record,) = [record for record in caplog.records if record.name == "rm_server.engine.host"]
        assert record.getMessage().startswith("Scoring with m@1 failed.\nTraceback")
        assert record.worker == engine.worker_pids[0]


async def test_a_worker_that_dies_while_the_others_start_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = workers.ProcessWorker.start, []

    async def dying(worker: workers.ProcessWorker, on_death: workers.DeathHandler) -> None:
        started.append(worker)
        is_first = len(started) == 1
        await start(worker, on_death)
        if is_first:
            os.kill(worker.pid, signal.SIGKILL)
        else:
            await fake.until(lambda: not started[0].is_alive)

    monkeypatch.setattr(workers.ProcessWorker, "start", dying)
    async with running_engine(workers=2) as engine:
        await fake.until(lambda: len(engine.worker_pids) == 2 and started[0].pid not in engine.worker_pids)
        await load(engine, tmp_path)
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]


async def test_a_stop_ends_the_worker_that_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, started = workers.ProcessWorker._spawn, []

    def noting(worker: workers.ProcessWorker) -> Any:
        socket = spawn(worker)
        started.append(worker.pid)
        return socket

    monkeypatch.setattr(workers.ProcessWorker, "_spawn", noting)
    async with running_engine(workers=1):
        os.kill(started[0], signal.SIGKILL)
        await fake.until(lambda: len(started) == 2)
        await asyncio.sleep(0.05)  # until it is waited for
    await fake.until(lambda: not any(is_running(pid) for pid in started))


async def test_a_start_without_workers_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerFailed, match="ended with status 1"):
        async with running_engine(workers=2):
            pass


async def test_both_workers_work_at_once(tmp_path: Path) -> None:
    async with running_engine(workers=2) as engine:
        await load(engine, tmp_path)
        loaded = len(fake.noted(tmp_path))
        futures = engine.submit(KEY, items([fake.WAIT]))
        await asyncio.sleep(0)
        futures += engine.submit(KEY, items([1, fake.WAIT]))
        await fake.until(lambda: len(fake.noted(tmp_path)) == loaded + 2)
        fake.open_gate(tmp_path)
        assert await outcomes(futures) == [fake.WAIT / 2, (1 + fake.WAIT) / 2]


async def test_a_worker_takes_all_threads_only_while_it_is_alone(tmp_path: Path) -> None:
    async with running_engine(workers=2, max_batch_tokens=10) as engine:
        await load(engine, tmp_path)
        first = engine.submit(KEY, items([fake.WAIT]))
        await fake.until(lambda: fake.noted(tmp_path, "alone") == [1])
        second = engine.submit(KEY, items([1, fake.WAIT]))
        await fake.until(lambda: fake.noted(tmp_path, "alone") == [1, 0])
        fake.open_gate(tmp_path)
        await outcomes(first + second)
        # Both are idle, and there is work for both.
        await outcomes(engine.submit(KEY, items([1] * 10, [2] * 10)))
        assert fake.noted(tmp_path, "alone")[2:] == [0, 0]
        await outcomes(engine.submit(KEY, items([3])))
        assert fake.noted(tmp_path, "alone")[4:] == [1]


async def test_no_process_is_left_after_a_stop(tmp_path: Path) -> None:
    async with running_engine(workers=2) as engine:
        await load(engine, tmp_path)
        pids = engine.worker_pids
        # Not even one that computes.
        engine.submit(KEY, items([fake.WAIT]))
        await asyncio.sleep(0)
    assert not any(is_running(pid) for pid in pids)


SERVER = """
import asyncio, sys
import fake_versions as fake
import numpy as np
from rm_server.backends.items import EncodedItem
from pathlib import Path

async def main():
    async with fake.running_engine(workers=2) as engine:
        folder = Path(sys.argv[1])
        await engine.load(("m", 1), folder, fake.make_version(folder), "fp32")
        # One of them computes, and would for ever.
        engine.submit(("m", 1), [EncodedItem(np.array([fake.WAIT], np.int32), 1)])
        await fake.until(lambda: len(fake.noted(folder)) == 5)
        print(*engine.worker_pids, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_workers_do_not_outlive_a_killed_server(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    with server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
        server.kill()
    asyncio.run(fake.until(lambda: not any(is_running(pid) for pid in pids)))
