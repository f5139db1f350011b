"""Futures: many calls at a time, cancellation, threads, processes, and the end of a client's life."""

from __future__ import annotations

import asyncio
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import wait_until

from ppo_client import AsyncRewardClient, RewardClient, Scores, errors

from .conftest import QUICK
from .fake_server import FakeServer, wait_for, wait_until_cancelled


@pytest.fixture
def client(server: FakeServer) -> Iterator[RewardClient]:
    with RewardClient(server.address, retry=QUICK, timeout_s=60.0) as client:
        yield client


def submit(client: RewardClient, completion: str, timeout_s: float | None = None) -> Future[Scores]:
    return client.submit("length", prompts=["p"], completions=[completion], timeout_s=timeout_s)


def test_submit_returns_at_once_and_answers_come_in_any_order(server: FakeServer, client: RewardClient) -> None:
    release = threading.Event()
    server.will(wait_for(release))
    slow, quick = submit(client, "x"), submit(client, "yy")
    wait_until(lambda: slow.done() or quick.done())
    assert slow.done() != quick.done()
    release.set()
    assert (slow.result().values, quick.result().values) == ([1.0], [2.0])


def test_what_is_wrong_with_the_arguments_is_raised_by_submit_itself(client: RewardClient) -> None:
    with pytest.raises(errors.InvalidRequest):
        client.submit("length", prompts=["p"], completions=[])


def test_a_bounded_number_of_requests_is_on_the_wire(server: FakeServer) -> None:
    release = threading.Event()
    server.always = wait_for(release)
    with RewardClient(server.address, max_in_flight=3) as client:
        futures = [submit(client, "x" * size) for size in range(10)]
        wait_until(lambda: len(server.requests) == 3)
        release.set()
        assert [future.result().values for future in futures] == [[float(size)] for size in range(10)]
    assert len(server.requests) == 10


def test_waiting_for_ones_own_calls_is_part_of_the_deadline(server: FakeServer) -> None:
    release = threading.Event()
    server.will(wait_for(release))
    with RewardClient(server.address, max_in_flight=1) as client:
        first = submit(client, "x")
        wait_until(lambda: server.requests)
        with pytest.raises(errors.DeadlineExceeded, match="max_in_flight"):
            submit(client, "y", timeout_s=0.05).result()
        release.set()
        assert first.result().values == [1.0]
        assert submit(client, "zz").result().values == [2.0], "the slot came back"


def test_cancelling_the_future_cancels_the_call_on_the_server(server: FakeServer, client: RewardClient) -> None:
    server.will(wait_until_cancelled)
    future = submit(client, "x")
    wait_until(lambda: server.requests)
    assert future.cancel()
    assert server.cancelled.wait(20)
    with pytest.raises(CancelledError):
        future.result()
    assert submit(client, "yy").result().values == [2.0]


def test_an_awaiting_task_that_is_cancelled_cancels_the_call(server: FakeServer) -> None:
    async def main() -> None:
        async with AsyncRewardClient(server.address) as client:
            call = asyncio.create_task(client.score("length", prompts=["p"], completions=["x"]))
            await asyncio.to_thread(wait_until, lambda: server.requests)
            call.cancel()
            assert await asyncio.to_thread(server.cancelled.wait, 20)

    server.will(wait_until_cancelled)
    asyncio.run(main())


def test_one_async_client_serves_several_event_loops(server: FakeServer) -> None:
    client = AsyncRewardClient(server.address)

    async def main(completion: str) -> list[float]:
        started = client.submit("length", prompts=["p"], completions=[completion])
        return [*(await client.score("length", prompts=["p"], completions=["x"])).values, *(await started).values]

    assert asyncio.run(main("yy")) == [1.0, 2.0]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda text: asyncio.run(main(text)), ["zzz", "vvvv"])) == [[1.0, 3.0], [1.0, 4.0]]
    asyncio.run(client.close())


def test_eight_threads_share_a_client(server: FakeServer, client: RewardClient) -> None:
    start = threading.Barrier(8)

    def work(number: int) -> bool:
        start.wait()
        return all(
            client.score("length", prompts=["p", "q"], completions=["x" * number, "x" * turn]).values
            == [float(number), float(turn)]
            for turn in range(25)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert len(server.requests) == 200


def test_closing_ends_what_is_under_way(server: FakeServer, client: RewardClient) -> None:
    server.will(wait_until_cancelled)
    future = submit(client, "x")
    wait_until(lambda: server.requests)
    client.close()
    assert server.cancelled.wait(20)
    with pytest.raises(CancelledError):
        future.result()


def test_nothing_is_left_waiting_by_a_close_in_the_midst_of_calls(server: FakeServer) -> None:
    for _ in range(20):
        client = RewardClient(server.address)
        submit(client, "x").result()
        ended: list[str] = []

        def work(client: RewardClient = client, ended: list[str] = ended) -> None:
            try:
                while True:
                    submit(client, "x").result()
            except (CancelledError, errors.ClientClosed) as error:
                ended.append(type(error).__name__)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        client.close()
        for thread in threads:
            thread.join(20)
        assert len(ended) == 3


def test_a_client_that_is_dropped_ends_its_thread(server: FakeServer) -> None:
    others = set(threading.enumerate())
    client = RewardClient(server.address)
    assert submit(client, "x").result().values == [1.0]
    (thread,) = (each for each in set(threading.enumerate()) - others if each.name == "reward-client")
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    thread.join(20)
    assert not thread.is_alive()


def test_a_future_keeps_its_client_alive(server: FakeServer) -> None:
    release = threading.Event()
    server.will(wait_for(release))
    future = submit(RewardClient(server.address), "x")
    wait_until(lambda: server.requests)
    gc.collect()
    release.set()
    assert future.result().values == [1.0]


def test_a_callback_that_would_wait_for_itself_is_told_so(server: FakeServer, client: RewardClient) -> None:
    release = threading.Event()
    server.will(wait_for(release))
    caught: Future[BaseException | None] = Future()

    def callback(_: object) -> None:
        try:
            client.score("length", prompts=["p"], completions=["x"])
        except errors.ClientMisuse as error:
            caught.set_result(error)

    submit(client, "x").add_done_callback(callback)
    release.set()
    assert "submit()" in str(caught.result(20))


def test_a_pickled_client_is_a_client_with_the_same_settings(server: FakeServer) -> None:
    with RewardClient(server.address, run="exp-1", timeout_s=7.0) as client:
        submit(client, "x").result()
        with pickle.loads(pickle.dumps(client)) as copy:
            assert copy.settings == client.settings
            assert submit(copy, "yy").result().values == [2.0]
    copy = pickle.loads(pickle.dumps(AsyncRewardClient("a:1")))
    assert copy.settings.targets == ("a:1",)


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


FORK = """
import multiprocessing, sys
from ppo_client import RewardClient, errors

client = RewardClient(sys.argv[1], timeout_s=20)
if sys.argv[2] == "used":
    client.score("length", prompts=["p"], completions=["x"])

def work(results):
    try:
        results.put(client.score("length", prompts=["p"], completions=["xx"]).values)
    except errors.ForkedAfterUse as error:
        try:
            RewardClient(sys.argv[1]).list_models()
        except errors.ForkedAfterUse:
            results.put("spawn" in str(error))

context = multiprocessing.get_context("fork")
results = context.SimpleQueue()
child = context.Process(target=work, args=(results,))
child.start()
print(results.get())
child.join()
assert child.exitcode == 0, child.exitcode
print(client.score("length", prompts=["p"], completions=["xxx"]).values)
"""


def test_a_client_that_was_only_made_works_on_both_sides_of_a_fork(server: FakeServer) -> None:
    result = run_python(FORK, server.address, "made")
    assert result.stdout.split("\n")[:2] == ["[2.0]", "[3.0]"], result.stderr


def test_a_child_of_a_process_that_used_a_client_is_told_instead_of_hanging(server: FakeServer) -> None:
    result = run_python(FORK, server.address, "used")
    assert result.stdout.split("\n")[:2] == ["True", "[3.0]"], result.stderr


FORK_BESIDE = """
import gc, multiprocessing, sys, threading
from ppo_client import RewardClient

client = RewardClient(sys.argv[1], timeout_s=20)
stop = threading.Event()

def score():
    while not stop.is_set():
        client.score("length", prompts=["p"], completions=["x"])

thread = threading.Thread(target=score)
thread.start()
context = multiprocessing.get_context("fork")
codes = []
for _ in range(12):
    children = [context.Process(target=gc.collect) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    codes += [child.exitcode for child in children]
stop.set()
thread.join()
client.close()
print(set(codes))
"""


def test_workers_forked_beside_calls_under_way_live(server: FakeServer) -> None:
    result = run_python(FORK_BESIDE, server.address)
    assert result.stdout.strip() == "{0}", result.stderr[-2000:]


def test_a_program_that_forgets_to_close_ends_quietly(server: FakeServer) -> None:
    result = run_python(
        "import sys; from ppo_client import RewardClient; client = RewardClient(sys.argv[1]); "
        "future = client.submit('length', prompts=['p'], completions=['x']); print(future.result().values)",
        server.address,
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "[1.0]", "")


def test_importing_the_client_loads_nothing_heavy() -> None:
    result = run_python(
        "import sys, threading; import ppo_client; "
        "print(sorted({'torch', 'numpy', 'transformers', 'pyarrow'} & set(sys.modules)), threading.active_count())"
    )
    assert result.stdout.strip() == "[] 1", result.stderr


def test_the_package_says_what_it_offers() -> None:
    import ppo_client

    assert all(hasattr(ppo_client, name) for name in ppo_client.__all__)
    assert Path(str(ppo_client.__file__)).name == "__init__.py"
