from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from ppo_client import RewardClient, Tls, errors

from .conftest import QUICK, Connect, score
from .fake_server import FakeServer, fail

StartServer = Callable[..., FakeServer]


def test_calls_go_round(start_server: StartServer, connect: Connect) -> None:
    servers = [start_server() for _ in range(3)]
    client = connect(*(server.address for server in servers))
    for _ in range(9):
        score(client, "x")
    assert [len(server.requests) for server in servers] == [3, 3, 3]


def test_a_dead_server_is_not_noticed_by_callers(start_server: StartServer, connect: Connect) -> None:
    alive, dead = start_server(), start_server()
    client = connect(alive.address, dead.address)
    score(client, "x")
    score(client, "x")
    dead.stop()
    for _ in range(10):
        assert score(client, "xx").values == [2.0]
    assert len(alive.requests) == 11


def test_a_server_that_comes_back_is_asked_again(start_server: StartServer) -> None:
    first, second = start_server(), start_server()
    with RewardClient([first.address, second.address], retry=QUICK, timeout_s=20) as client:
        first.will(fail(grpc.StatusCode.UNAVAILABLE, "DRAINING"))
        second.will(fail(grpc.StatusCode.UNAVAILABLE, "DRAINING"))
        while len(first.requests) < 3 or len(second.requests) < 3:
            score(client, "x")


def unreachable(client: RewardClient, says: str = "") -> None:
    with pytest.raises((errors.ServerUnreachable, errors.DeadlineExceeded)) as caught:
        score(client, "x", timeout_s=2)
    # The deadline may have cut the last of many attempts; it was not the first one's trouble.
    error = caught.value if isinstance(caught.value, errors.ServerUnreachable) else caught.value.__cause__
    assert isinstance(error, errors.ServerUnreachable)
    assert says in str(error)


@pytest.fixture
def connect_once() -> Iterator[Connect]:
    """The waiting client only, where much time is waited."""
    with ExitStack() as clients:
        yield lambda *targets, **settings: clients.enter_context(RewardClient(targets, retry=QUICK, **settings))


def test_nobody_at_the_address(connect_once: Connect) -> None:
    unreachable(connect_once("127.0.0.1:1"), "host and port")


def test_a_restart_of_the_only_server_is_waited_for(start_server: StartServer, connect_once: Connect) -> None:
    before = start_server()
    client = connect_once(before.address)
    score(client, "x")
    before.stop()
    unreachable(client)
    after = start_server(port=before.port)
    assert score(client, "xx").values == [2.0]
    assert len(after.requests) == 1


def test_all_addresses_of_a_name_are_one_target(server: FakeServer, connect: Connect) -> None:
    assert score(connect(f"dns:///localhost:{server.port}"), "x").values == [1.0]


def test_something_else_at_the_address(connect: Connect) -> None:
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    with pytest.raises(errors.NotARewardServer, match="--listen"):
        score(connect(f"127.0.0.1:{port}"), "x")
    other.stop(None)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-addext", names, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True
    )
    return cert, key


def test_tls_with_a_certificate_of_ones_own(
    start_server: StartServer, connect_once: Connect, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    server = start_server(credentials=grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))
    assert score(connect_once(server.address, tls=str(cert), token="secret"), "x").values == [1.0]
    assert server.seen[0].metadata["authorization"] == "Bearer secret"
    unreachable(connect_once(server.address, tls=True))
    unreachable(connect_once(server.address), "does it speak TLS")


def test_servers_may_ask_who_is_calling(
    start_server: StartServer, connect_once: Connect, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    server = start_server(
        credentials=grpc.ssl_server_credentials(
            [(key.read_bytes(), cert.read_bytes())], root_certificates=cert.read_bytes(), require_client_auth=True
        )
    )
    assert score(connect_once(server.address, tls=Tls(cert, cert, key)), "x").values == [1.0]
    unreachable(connect_once(server.address, tls=Tls(cert)))


def test_a_file_that_is_not_there_is_named(connect: Connect) -> None:
    with pytest.raises(errors.InvalidSettings, match=r"nowhere\.pem"):
        score(connect("localhost:1", tls="nowhere.pem"), "x")
