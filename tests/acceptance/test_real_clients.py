"""Clients that others wrote, as they are, against a real server: tritonclient, and gRPC's JavaScript."""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rm_api.v1 import experiments_pb2, scoring_pb2
from running_server import RunningServer, make_version, running

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
TRITON = ROOT / ".venv-peers" / "triton"
TRITON_PACKAGES = ("tritonclient[grpc]>=2.60", "protobuf<7")

PROMPTS = ["Hi", "Hi", "Tell me a story."]
COMPLETIONS = ["Hello!", "Go away.", "é 汉字 🙂"]
ROWS, MASK = [[5, 6, 7, 0], [0, 0, 8, 9]], [[1, 1, 1, 0], [0, 0, 1, 1]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with helpfulness@1 (stable) and @2."""
    root = tmp_path_factory.mktemp("real-clients")
    with running(root / "home") as server:
        server.deploy("helpfulness", *(make_version(root / f"v{seed}", seed) for seed in (1, 2)))
        yield server


@pytest.fixture(scope="module")
def triton_python() -> Path:
    """The Python of an environment with tritonclient, which is made once."""
    python = TRITON / "bin" / "python"
    if not python.exists():
        venv.create(TRITON, with_pip=True)
    if subprocess.run([python, "-c", "import tritonclient.grpc"], capture_output=True, check=False).returncode != 0:
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TRITON_PACKAGES]
        done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            pytest.skip(f"pip cannot install {TRITON_PACKAGES[0]}: {done.stderr.strip()[-300:]}")
    return python


def output_of(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def ids_request(ids: list[int]) -> scoring_pb2.ScoreRequest:
    request = scoring_pb2.ScoreRequest(model="helpfulness@2")
    request.groups.add().completions.add().token_ids.ids.extend(ids)
    return request


def expected(server: RunningServer, selector: str) -> list[float]:
    return [
        server.score(selector, completion, prompt=prompt).results[0].score.value
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]


@pytest.fixture(scope="module")
def triton(server: RunningServer, triton_python: Path) -> dict[str, Any]:
    """What the program with tritonclient printed."""
    wanted = {"prompts": PROMPTS, "completions": COMPLETIONS, "input_ids": ROWS, "mask": MASK}
    command = [triton_python, PEERS / "triton_client.py", server.app.grpc_address, json.dumps(wanted)]
    got: dict[str, Any] = json.loads(output_of(command))
    return got


def test_tritonclient_asks_readiness_and_metadata(triton: dict[str, Any]) -> None:
    assert (triton["live"], triton["ready"], triton["server"]) == (True, True, "rm-server")
    assert triton["models_ready"] == [True, True]
    assert triton["models_not_ready"] == [False, False]
    assert triton["versions"] == ["1", "2"]
    assert triton["outputs"] == {"score": "FP64", "truncated": "BOOL", "num_tokens": "INT32"}


def test_tritonclient_infers_from_text(server: RunningServer, triton: dict[str, Any]) -> None:
    for call, number in (("texts", 1), ("future", 1), ("for_a_run", 1), ("pinned", 2)):
        got = triton[call]
        assert (got["model"], got["version"]) == ("helpfulness", str(number)), call
        assert got["scores"] == pytest.approx(expected(server, f"helpfulness@{number}"), abs=1e-5)
        assert got["truncated"] == [False] * 3
        assert got["digest"] == server.score(f"helpfulness@{number}", "a").digest
    assert triton["texts"]["id"] == "mine"
    assert triton["one_output"] == ["score"]
    runs = server.experiments.ListRuns(experiments_pb2.ListRunsRequest()).runs
    assert [run.items for run in runs if run.run == "exp-triton"] == [3]


def test_tritonclient_infers_from_ids(server: RunningServer, triton: dict[str, Any]) -> None:
    for row, mask, score in zip(ROWS, MASK, triton["ids"]["scores"], strict=True):
        request = ids_request([token for token, counts in zip(row, mask, strict=True) if counts])
        assert score == pytest.approx(server.scoring.Score(request).results[0].score.value, abs=1e-5)


def test_tritonclient_is_told_what_is_wrong(triton: dict[str, Any]) -> None:
    status, message = triton["unknown_model"]
    assert status == "StatusCode.NOT_FOUND"
    assert "'nonsense'" in message
    status, message = triton["bad_item"]
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "completion[1]" in message
    assert triton["not_offered"][0] == "StatusCode.UNIMPLEMENTED"


def test_tritonclient_streams(server: RunningServer, triton: dict[str, Any]) -> None:
    first, wrong, *others = triton["stream"]
    assert wrong.startswith("MODEL_NOT_FOUND: ")
    for text, answer in zip(COMPLETIONS, [first, *others], strict=True):
        score = server.score("helpfulness@1", text, prompt="").results[0].score.value
        assert answer["scores"] == pytest.approx([score], abs=1e-5)
    assert [answer["id"] for answer in [first, *others]] == ["s0", "s1", "s2"]
