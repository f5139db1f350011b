"""Clients that others wrote, as they are, against a real server: tritonclient, and gRPC's JavaScript."""

from __future__ import annotations

import json
import os
import shutil
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


# --- gRPC's JavaScript ---


@pytest.fixture(scope="module")
def javascript() -> Path:
    """The example in JavaScript, with its packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: apt-get install nodejs npm")
    folder = ROOT / "examples" / "javascript"
    if not (folder / "node_modules" / "@grpc" / "grpc-js").exists():
        install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install @grpc/grpc-js: {done.stderr.strip()[-300:]}")
    return folder / "score.mjs"


def javascript_answers(script: Path, *arguments: str, status: int = 0, **environment: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["node", str(script), *arguments],
        env={**os.environ, "no_proxy": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_javascript_scores(server: RunningServer, javascript: Path) -> None:
    target = server.app.grpc_address
    (answer,) = javascript_answers(javascript, target, "helpfulness", "Hi", "Hello!", "", "Go.", RM_RUN="exp-js")
    scored = server.score("helpfulness@1", "Hello!", "", "Go.")
    assert (answer["model"], answer["version"], answer["digest"]) == ("helpfulness", 1, scored.digest)
    first, empty, last = answer["items"]
    assert first["score"] == pytest.approx(scored.results[0].score.value, abs=1e-5)
    assert empty["error"]["reason"] == "ERROR_REASON_EMPTY_ITEM"
    assert "score" not in empty
    assert last["score"] == pytest.approx(scored.results[2].score.value, abs=1e-5)
    runs = server.experiments.ListRuns(experiments_pb2.ListRunsRequest()).runs
    assert "exp-js" in {run.run for run in runs}


def test_javascript_reads_a_typed_error(server: RunningServer, javascript: Path) -> None:
    (failure,) = javascript_answers(javascript, server.app.grpc_address, "nonsense", "Hi", "Hello!", status=1)
    assert (failure["status"], failure["reason"]) == ("NOT_FOUND", "ERROR_REASON_MODEL_NOT_FOUND")
    assert "'nonsense'" in failure["message"]


def test_javascript_streams(server: RunningServer, javascript: Path) -> None:
    texts = ["Hello!", "Go away.", "", *(f"text {number}" for number in range(20))]
    answers = javascript_answers(javascript, "--stream", server.app.grpc_address, "helpfulness@2", "Hi", *texts)
    by_id = {answer["id"]: answer for answer in answers}
    assert set(by_id) == {str(index) for index in range(len(texts))}
    for index, result in enumerate(server.score("helpfulness@2", *texts).results):
        (item,) = by_id[str(index)]["items"]
        if texts[index]:
            assert item["score"] == pytest.approx(result.score.value, abs=1e-5)
        else:
            assert item["error"]["reason"] == "ERROR_REASON_EMPTY_ITEM"
