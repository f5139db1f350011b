"""Servers as operators run them: processes of their own, on ports of the system's choice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from rm_api.v1 import models_pb2, models_pb2_grpc
from running_server import LOCAL_ONLY, make_rules_version

READY = re.compile(r"ready grpc=(\S+) http=(\S+)\n")


@contextmanager
def serving(home: Path, *options: str) -> Iterator[str]:
    """The gRPC address of an `rm-server serve` that ends with the block."""
    command = [sys.executable, "-m", "rm_server.cli", "serve", "--home", str(home), "--listen", "127.0.0.1:0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RM_SERVER_HTTP": "127.0.0.1:0"}
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        ready = READY.fullmatch(line)
        assert ready, f"{line!r}, log: {(home / 'server.log').read_text()}"
        yield ready.group(1)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="session")
def even_token_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the rules model `even`, labelled `stable`: the share of even token ids."""
    root = tmp_path_factory.mktemp("even")
    folder = make_rules_version(root / "even", {"type": "token_id_share", "modulus": 2, "residue": 0})
    with serving(root / "home") as target:
        with grpc.insecure_channel(target, LOCAL_ONLY) as channel:
            models = models_pb2_grpc.ModelServiceStub(channel)
            models.RegisterVersion(models_pb2.RegisterVersionRequest(model="even", path=str(folder)))
            models.SetLabel(models_pb2.SetLabelRequest(model="even", label="stable", version=1, load=True))
        yield target
