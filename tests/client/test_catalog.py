"""Runs, leases, models and watches, over a socket."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from rm_api.v1 import experiments_pb2, models_pb2
from waiting import wait_until

from ppo_client import AsyncRewardClient, RewardClient, errors
from ppo_client.client.catalog import Evaluation, ModelChange, read_change, read_lease
from ppo_client.client.operations import Operations
from ppo_client.client.scores import Calibration
from ppo_client.client.settings import ClientSettings

from .conftest import QUICK, Connect
from .fake_server import DIGESTS, FakeServer


def test_a_run_gets_a_lease_keeps_it_and_ends_it(server: FakeServer, connect: Connect) -> None:
    client = connect(server.address, run="exp-1")
    lease = client.register_run("length", lease_s=60.0, expected_digest="d", move=True)
    assert (lease.run, lease.model, lease.version, lease.digest, lease.arm) == ("exp-1", "length", 1, DIGESTS[1], "b")
    assert lease.expire_time == datetime.fromtimestamp(1_700_000_000, UTC)
    assert (lease.is_resumed, lease.calibration) == (True, None)
    assert client.renew_lease("length", run="exp-2").run == "exp-2"
    client.end_run()
    register, renew, end = (seen.request for seen in server.seen)
    assert register == experiments_pb2.RegisterRunRequest(
        run="exp-1", model="length", lease_seconds=60.0, expected_digest="d", move=True
    )
    assert renew == experiments_pb2.RenewLeaseRequest(run="exp-2", model="length")
    assert end == experiments_pb2.EndRunRequest(run="exp-1")


def test_a_lease_that_is_gone_is_a_typed_error(server: FakeServer, connect: Connect) -> None:
    with pytest.raises(errors.RunNotFound):
        connect(server.address, run="exp-1").renew_lease("gone")


def test_a_call_for_a_run_needs_one(server: FakeServer, connect: Connect) -> None:
    client = connect(server.address)
    for call in (lambda: client.register_run("m"), lambda: client.renew_lease("m"), lambda: client.end_run()):
        with pytest.raises(errors.InvalidRequest, match="RM_RUN"):
            call()
    assert server.seen == []


def test_models_and_versions(server: FakeServer, connect: Connect) -> None:
    client = connect(server.address)
    (model,) = client.list_models()
    assert (model.name, model.labels) == ("length", {"stable": 1})
    (version,) = model.versions
    assert (version.version, version.kind, version.state, version.labels) == (1, "rules", "failed", ("stable",))
    assert isinstance(version.error, errors.DigestMismatch)
    (evaluation,) = client.get_version("length@1").evaluations
    assert evaluation == Evaluation("held_out", {"accuracy": 0.75}, datetime.fromtimestamp(0, UTC))
    assert server.seen[1].request == models_pb2.GetVersionRequest(selector="length@1")


def test_calibrations_come_with_leases() -> None:
    lease = experiments_pb2.Lease(run="r")
    lease.calibration.digest, lease.calibration.gain = "c", 2.0
    assert read_lease(lease, is_resumed=False).calibration == Calibration("c", 2.0, 0.0)


def test_a_change_that_only_newer_servers_know_has_a_name_all_the_same() -> None:
    change = models_pb2.WatchModelsResponse(change=99)
    assert read_change(change).change == "unknown_99"


def test_a_watch_goes_on_when_the_connection_ends(server: FakeServer) -> None:
    with RewardClient(server.address, retry=QUICK) as client, client.watch("length") as watch:
        changes = [next(watch).change for _ in range(3)]
        assert changes == ["initial", "initial", "labels"]
        watch.close()
        assert list(watch) == []
        assert server.cancelled.wait(20)
        with pytest.raises(StopIteration):
            next(watch)


def test_closing_a_watch_wakes_who_waits_for_it(server: FakeServer) -> None:
    with RewardClient(server.address, retry=QUICK) as client:
        watch = client.watch()
        seen: list[ModelChange] = []
        thread = threading.Thread(target=lambda: seen.extend(watch))
        thread.start()
        wait_until(lambda: len(seen) == 3)
        watch.close()
        thread.join(20)
        assert not thread.is_alive()


def test_a_watch_that_cannot_go_on_raises_why(server: FakeServer) -> None:
    with RewardClient(server.address, retry=QUICK) as client, client.watch("unknown") as watch:
        with pytest.raises(errors.ModelNotFound):
            next(watch)
        with pytest.raises(StopIteration):
            next(watch)


async def test_patience_begins_anew_whenever_a_server_answers(server: FakeServer) -> None:
    now = 0.0
    ten = asyncio.Event()
    changes: list[ModelChange] = []

    def pass_time() -> None:
        nonlocal now
        now += 40.0

    def deliver(change: ModelChange) -> None:
        changes.append(change)
        if len(changes) == 10:
            ten.set()

    server.on_watch = pass_time
    operations = Operations(ClientSettings((server.address,), retry=QUICK, timeout_s=60.0), clock=lambda: now)
    watch = asyncio.create_task(operations.watch("length", deliver))
    await asyncio.wait([watch, asyncio.create_task(ten.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert not watch.done()
    watch.cancel()
    await asyncio.wait([watch])
    operations.close()


async def test_leaving_an_awaiting_watch_ends_it(server: FakeServer) -> None:
    server.watched.set()
    async with AsyncRewardClient(server.address, retry=QUICK) as client:
        async with aclosing(client.watch("length")) as changes:
            assert (await anext(changes)).change == "initial"
        assert await asyncio.to_thread(server.cancelled.wait, 20)


def test_an_awaiting_watch(server: FakeServer) -> None:
    async def main() -> list[str]:
        changes = []
        async with AsyncRewardClient(server.address, retry=QUICK) as client:
            async for change in client.watch("length"):
                changes.append(change.change)
                if len(changes) == 3:
                    break
            with pytest.raises(errors.ModelNotFound):
                async for _ in client.watch("unknown"):
                    pass
        return changes

    assert asyncio.run(main()) == ["initial", "initial", "labels"]
