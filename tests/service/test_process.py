"""`rm-server serve` as a process: says where it listens, drains on SIGTERM, refuses to start where it must not."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from rm_api.v1 import models_pb2, models_pb2_grpc, scoring_pb2_grpc
from running_server import LOCAL_ONLY, Gate, running, score_request

from rm_server.api.roles import Role
from rm_server.api.tokens import TokenEntry, hash_of
from rm_server.api.tokens_file import add_token
from rm_server.app import SERVER_FILE
from rm_server.config import ConfigError, EngineSettings, ServeSettings
from rm_server.process import OPEN_FILES, run

COMMAND = [sys.executable, "-m", "rm_server.cli", "serve"]
READY = re.compile(r"ready grpc=(127\.0\.0\.1:\d+) http=(127\.0\.0\.1:\d+)\n")


@contextmanager
def serving(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its gRPC address."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RM_SERVER_HTTP": "127.0.0.1:0"}
    command = [*COMMAND, "--home", str(home), "--listen", "127.0.0.1:0", *options]
    with (home.parent / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        ready = READY.fullmatch(line)
        assert ready, f"{line!r}, log: {(home.parent / 'server.log').read_text()}"
        yield process, ready.group(1)
    finally:
        process.kill()
        process.communicate()


def test_sighup_reads_the_tokens_again(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    add_token(file, TokenEntry("first", Role.SCORE, sha256=hash_of("first")))
    log = tmp_path / "server.log"
    with serving(tmp_path / "home", "--workers", "0", "--tokens", str(file)) as (process, address):
        process.send_signal(signal.SIGHUP)  # the file is as it was: polling alone would not read it
        deadline = time.monotonic() + 30
        while "files were loaded again" not in log.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
        with grpc.insecure_channel(address, LOCAL_ONLY) as channel:
            status = models_pb2_grpc.ModelServiceStub(channel).GetServerStatus
            request = models_pb2.GetServerStatusRequest()
            assert status(request, metadata=(("authorization", "Bearer first"),)).device == "cpu"
            with pytest.raises(grpc.RpcError) as caught:
                status(request)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_it_serves_until_sigterm_and_finishes_what_is_under_way(tmp_path: Path, versions: list[Path]) -> None:
    home = tmp_path / "home"
    with serving(home, "--set", "engine.threads_per_worker=1") as (process, address):
        assert json.loads((home / "server.json").read_text())["grpc"] == address
        assert json.loads((home / "server.json").read_text())["pid"] == process.pid
        with grpc.insecure_channel(address, LOCAL_ONLY) as channel:
            models = models_pb2_grpc.ModelServiceStub(channel)
            score = scoring_pb2_grpc.ScoringServiceStub(channel).Score
            models.RegisterVersion(models_pb2.RegisterVersionRequest(model="m", path=str(versions[0])))
            models.SetLabel(models_pb2.SetLabelRequest(model="m", label="stable", version=1, load=True))
            texts = [f"text {number} " + "word " * (number % 40) for number in range(500)]
            under_way = score.future(score_request("m", *texts), timeout=120)
            status = models_pb2.GetServerStatusRequest()
            while not models.GetServerStatus(status).queued_items and not under_way.done():
                pass
            assert not under_way.done()
            process.send_signal(signal.SIGTERM)
            answer = under_way.result()
            assert all(result.HasField("score") for result in answer.results)
            assert len(answer.results) == 500
        assert process.wait(timeout=60) == 0
        assert not (home / "server.json").exists()

    # What was loaded is loaded again; nobody has to say so.
    with serving(home, "--workers", "0") as (process, address):
        with grpc.insecure_channel(address, LOCAL_ONLY) as channel:
            score = scoring_pb2_grpc.ScoringServiceStub(channel).Score
            again = score(score_request("m", *texts[:3]), timeout=60)
            assert [result.score.value for result in again.results] == pytest.approx(
                [result.score.value for result in answer.results[:3]], abs=1e-5
            )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def test_as_many_connections_are_allowed_as_the_system_lets_it_have(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        with serving(tmp_path / "home", "--workers", "0") as (process, _):
            allowed, _ = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert allowed == (OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the test's certificate")
def test_every_line_of_a_log_of_json_is_json(tmp_path: Path) -> None:
    names = ("-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subprocess.run(["openssl", "req", "-x509", *new_key, *names], cwd=tmp_path, check=True, capture_output=True)
    tls = (f"tls.cert={tmp_path / 'cert.pem'}", f"tls.key={tmp_path / 'key.pem'}")
    options = [part for setting in ("log.format=json", *tls) for part in ("--set", setting)]
    with serving(tmp_path / "home", "--workers", "0", *options) as (process, address):
        with grpc.insecure_channel(address, LOCAL_ONLY) as channel, pytest.raises(grpc.RpcError):  # it wants TLS
            models_pb2_grpc.ModelServiceStub(channel).GetServerStatus(models_pb2.GetServerStatusRequest())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    lines = (tmp_path / "server.log").read_text().splitlines()
    assert "draining" in [json.loads(line)["event"] for line in lines]


def failed_start(*options: str) -> tuple[int, str]:
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for options in (
            ("--listen", address, "--http", "127.0.0.1:0"),
            ("--listen", "127.0.0.1:0", "--http", address),
        ):
            status, text = failed_start("--home", str(tmp_path / "home"), *options)
            assert status == 2
            assert f"rm-server: Cannot listen on {address}" in text
            assert "Traceback" not in text


def test_a_home_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    status, text = failed_start("--home", str(tmp_path / "file"), "--listen", "127.0.0.1:0", "--http", "")
    assert status == 1
    assert "cannot be used as a home" in text
    assert "Traceback" not in text


def test_a_slip_in_the_home_is_seen(tmp_path: Path) -> None:
    status, text = failed_start("--home", str(tmp_path / "modles" / "home"), "--listen", "127.0.0.1:0", "--http", "")
    assert status == 1
    assert len(text.splitlines()) == 1
    assert not (tmp_path / "modles").exists()

    log = tmp_path / "server.log"
    for _ in range(2):
        with serving(tmp_path / "home", "--workers", "0"):
            (said,) = [line for line in log.read_text().splitlines() if "new, empty home" in line]
            assert f"home={tmp_path / 'home'}" in said
            assert "level=warning" in said


def test_listening_wider_is_refused_unless_told(tmp_path: Path) -> None:
    status, text = failed_start("--home", str(tmp_path / "home"), "--listen", "0.0.0.0:0", "--http", "")
    assert status == 2
    assert "--insecure-listen" in text


def test_a_call_while_it_ends_is_sent_elsewhere(tmp_path: Path) -> None:
    """The reason says DRAINING or, when the port is closed already, the call is simply not connected."""
    with serving(tmp_path / "home") as (process, address), grpc.insecure_channel(address, LOCAL_ONLY) as channel:
        status = models_pb2_grpc.ModelServiceStub(channel).GetServerStatus
        status(models_pb2.GetServerStatusRequest())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        with pytest.raises(grpc.RpcError) as caught:
            status(models_pb2.GetServerStatusRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def own_logging() -> Iterator[None]:
    """`run` sets up the log of its process, which here is the test's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("rm_server").setLevel(logging.NOTSET)


def settings(home: Path) -> ServeSettings:
    engine = EngineSettings(workers=0, threads_per_worker=1)
    return ServeSettings(home, listen="127.0.0.1:0", http="127.0.0.1:0", engine=engine)


def test_on_windows_it_says_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match="WSL"):
        run(settings(tmp_path / "home"))


@pytest.mark.usefixtures("own_logging")
def test_sigterm_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def terminate() -> None:
        while not (tmp_path / "home" / SERVER_FILE).exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    assert run(settings(tmp_path / "home")) == 0
    thread.join()
    assert READY.fullmatch(capsys.readouterr().out)


@pytest.mark.usefixtures("own_logging")
def test_sigterm_while_versions_load_ends_it_before_it_ever_served(
    tmp_path: Path, versions: list[Path], gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path / "home") as server:
        server.deploy("helpfulness", versions[0])
    gate.close()

    def terminate() -> None:
        gate.wait_for_batch()
        os.kill(os.getpid(), signal.SIGTERM)
        gate.open()

    thread = threading.Thread(target=terminate)
    thread.start()
    assert run(settings(tmp_path / "home")) == 0
    thread.join()
    assert "ready" not in capsys.readouterr().out
    assert not (tmp_path / "home" / SERVER_FILE).exists()
