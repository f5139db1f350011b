"""A disk that is really full: uploads and changes of the catalog are refused, and whoever scores notices nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

PROGRAM = """
import os, pathlib, shutil, sys
import grpc
from rm_api.v1 import errors_pb2, models_pb2
from running_server import error_of, make_rules_version, running
from rm_server.registry import artifacts

disk, outside = map(pathlib.Path, sys.argv[1:])
rule = {"type": "length", "unit": "words", "max": 3}
small, large = make_rules_version(outside / "small", rule), make_rules_version(outside / "large", rule)
(large / "vocab.txt").write_bytes(os.urandom(8 << 20))

with running(disk / "home") as server:
    def score():
        return [result.score.value for result in server.score("m", "one two", "one two three four").results]

    def register(folder):
        return server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="m", path=str(folder)))

    def label(name):
        return server.models.SetLabel(models_pb2.SetLabelRequest(model="m", label=name, version=1))

    def refusal(call):
        status, error = error_of(call)
        assert status is grpc.StatusCode.RESOURCE_EXHAUSTED, status
        assert error.reason == errors_pb2.ERROR_REASON_STORAGE_FULL, error
        return error.message

    server.deploy("m", small)
    print("early:", refusal(lambda: register(large)))
    usage = shutil.disk_usage
    artifacts.shutil.disk_usage = lambda path: usage(path)._replace(free=1 << 60)  # let it run into the wall
    print("late:", refusal(lambda: register(large)))
    incoming = disk / "home" / "artifacts" / ".incoming"
    assert list(incoming.iterdir()) == []
    assert score() == [1.0, 0.0]

    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    for number in range(50):  # the catalog's log has some room of its own
        try:
            label(f"canary-{number}")
        except grpc.RpcError:
            message = refusal(lambda: label("one-more"))
            break
    else:
        raise AssertionError("the catalog never became full")
    print("catalog:", message)
    assert score() == [1.0, 0.0]
    names = set(server.models.ListModels(models_pb2.ListModelsRequest()).models[0].labels)
    assert "one-more" not in names

    ballast.unlink()
    label("one-more")
    assert "one-more" in server.models.ListModels(models_pb2.ListModelsRequest()).models[0].labels
    assert score() == [1.0, 0.0]
with running(disk / "home") as server:
    assert "one-more" in server.models.ListModels(models_pb2.ListModelsRequest()).models[0].labels
print("served")
"""


def test_a_full_disk_refuses_the_change_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = f'mount -t tmpfs -o size=6m tmpfs {disk} && exec "$PYTHON" -c "$PROGRAM" {disk} {tmp_path}'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", inside]
    try:
        subprocess.run([*command[:3], "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no user namespaces, so no small disk can be made: {error}")
    environment = {**os.environ, "PYTHON": sys.executable, "PROGRAM": PROGRAM, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    early, late, catalog, served = done.stdout.splitlines()
    assert "GB free" in early
    assert "No space left on device" in late
    assert "disk of the catalog" in catalog
    assert served == "served"
