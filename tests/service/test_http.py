"""Scoring over HTTP as OpenRLHF's and verl's clients do it, and how HTTP says what is wrong."""

from __future__ import annotations

import gzip
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rm_api.v1 import experiments_pb2, models_pb2
from running_server import RunningServer, make_version, running
from tiny_models import BOS, CHAT_TEMPLATE
from transformers import AutoTokenizer

from ppo_client import RewardClient
from ppo_client.adapters.openrlhf import RewardFunction
from ppo_client.adapters.trl import remote_reward
from ppo_client.errors import ServerUnreachable
from rm_server.api.buckets import Limits
from rm_server.api.roles import Role
from rm_server.api.tokens import TokenEntry, hash_of
from rm_server.api.tokens_file import add_token
from rm_server.config import AuthSettings, TransportSettings
from rm_server.registry.records import CalibrationRecord


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, versions: list[Path]) -> Iterator[RunningServer]:
    """A server with a default model, and a model whose name has a slash."""
    transport = TransportSettings(max_message_mb=0.1)
    with running(tmp_path_factory.mktemp("home"), default_model="helpfulness@stable", transport=transport) as server:
        server.deploy("helpfulness", *versions[:2])
        server.deploy("team/harmless", versions[2])
        yield server


def post(server: RunningServer, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{server.app.http_address}{path}", raw, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


def raw_score(server: RunningServer, selector: str, text: str) -> float:
    return server.score(selector, text, prompt="").results[0].score.value


def test_openrlhf_one_sample_a_post(server: RunningServer) -> None:
    body = {"query": ["Hi there<eos>"], "prompts": ["Hi"], "labels": [None]}
    status, answer, _ = post(server, "/models/helpfulness@2/get_reward", body)
    assert status == 200
    assert (
        answer["rewards"]
        == answer["scores"]
        == [pytest.approx(raw_score(server, "helpfulness@2", "Hi there<eos>"), abs=1e-5)]
    )
    assert (answer["model"], answer["version"], answer["truncated"]) == ("helpfulness", 2, [False])
    assert answer["extra_logs"] == {"rm_version": [2.0], "rm_truncated": [0.0]}  # all that OpenRLHF logs of it


def test_openrlhf_s_prompts_reach_a_version_that_reads_two_segments(tmp_path: Path) -> None:
    folder = make_version(tmp_path / "v", 5, family="bert", template="pair")
    with running(tmp_path / "home") as server:
        server.deploy("segments", folder)
        body = {"query": ["Hi there", "Hi there", "Hi there"], "prompts": ["Hi", "Ho", None], "labels": [None] * 3}
        _, answer, _ = post(server, "/models/segments/get_reward", body)
        parts = server.score("segments", " there", prompt="Hi").results[0].score.value
        whole = raw_score(server, "segments", "Hi there")
    assert parts != pytest.approx(whole, abs=1e-4)
    assert answer["rewards"] == pytest.approx([parts, whole, whole], abs=1e-6)


@pytest.mark.parametrize(
    ("family", "template"), [("llama", "{prompt}{completion}"), ("llama", "chat"), ("bert", "pair")]
)
def test_openrlhf_s_function_file_and_trl_s_rendered_texts_get_what_http_gives(
    tmp_path: Path, family: str, template: str
) -> None:
    """The policy's BOS in front of the text is the version's own, which its tokenizer adds again."""
    checkpoint = {"chat_template": "{{ bos_token }}" + CHAT_TEMPLATE, "adds_special_tokens": True}
    folder = make_version(tmp_path / "v", 5, family=family, checkpoint=checkpoint, template=template)
    queries, prompts = (
        ["Hi there", f"{BOS}Hi there<eos>", f"{BOS}Hi", "cut"],
        ["Hi", f"{BOS}Hi", f"{BOS}Hi", "it was cut"],
    )
    labels = [None] * len(queries)
    with running(tmp_path / "home") as server, RewardClient(server.app.grpc_address) as client:
        server.deploy("m", folder)
        body = {"query": queries, "prompts": prompts, "labels": labels}
        _, over_http, _ = post(server, "/models/m/get_reward", body)
        by_function = RewardFunction(client, "m@stable")(queries, prompts, labels)
        answers = [query.removeprefix(prompt) for query, prompt in zip(queries, prompts, strict=True)]
        begun = [prompt if query.startswith(prompt) else "" for query, prompt in zip(queries, prompts, strict=True)]
        by_trl = remote_reward(client, "m@stable", rendered=True)(begun, answers)
    assert by_function == {name: over_http[name] for name in by_function}
    assert by_trl == over_http["rewards"]


def test_openrlhf_batches_and_empty_lists(server: RunningServer) -> None:
    status, answer, _ = post(server, "/get_reward", {"query": ["a", "b", "c"]})
    assert (status, len(answer["rewards"]), answer["version"]) == (200, 3, 1)
    status, answer, _ = post(server, "/get_reward", {"query": [], "prompts": [], "labels": []})
    assert (status, answer["rewards"], answer["scores"]) == (200, [], [])


def test_verl_reads_one_raw_logit(server: RunningServer) -> None:
    body = {"model": "/models/any", "input": "Hi there", "use_activation": False}
    status, answer, _ = post(server, "/classify", body)
    assert status == 200
    assert answer["data"][-1]["probs"][-1] == pytest.approx(raw_score(server, "helpfulness@1", "Hi there"), abs=1e-5)
    assert answer["data"][0]["num_classes"] == 1


@pytest.mark.parametrize("template", ["chat", "{prompt}{completion}"])
def test_a_text_with_or_without_its_first_token_has_one_score(tmp_path: Path, template: str) -> None:
    """verl takes the BOS out of the rendered text, OpenRLHF leaves it in; the model was trained with one."""
    checkpoint = {"chat_template": "{{ bos_token }}" + CHAT_TEMPLATE, "adds_special_tokens": True}
    folder = make_version(tmp_path / "v", 5, family="llama", checkpoint=checkpoint, template=template)
    rendered = "[user] Hi<eos>[assistant] Hello!<eos>"
    plain = AutoTokenizer.from_pretrained(folder)
    ids = plain.encode(f"{BOS}{rendered}", add_special_tokens=False)
    with running(tmp_path / "home") as server:
        server.deploy("llama", folder)
        _, expected, _ = post(server, "/models/llama/classify", {"input": ids})
        _, verl, _ = post(server, "/models/llama/classify", {"input": rendered, "use_activation": False})
        _, openrlhf, _ = post(server, "/models/llama/get_reward", {"query": [f"{BOS}{rendered}"]})
        score = pytest.approx(expected["data"][-1]["probs"][-1], abs=1e-5)
        assert verl["data"][-1]["probs"][-1] == score
        assert openrlhf["rewards"] == [score]


def test_vllm_takes_token_ids(server: RunningServer) -> None:
    status, answer, _ = post(server, "/models/helpfulness/classify", {"input": [[7, 8, 9], [7, 8]]})
    assert (status, len(answer["data"]), answer["usage"]["prompt_tokens"]) == (200, 2, 5)


def test_a_model_s_name_may_have_slashes(server: RunningServer) -> None:
    status, answer, _ = post(server, "/models/team/harmless@1/get_reward", {"query": ["a"]})
    assert (status, answer["model"]) == (200, "team/harmless")


def test_a_run_is_named_in_the_query_of_the_url(server: RunningServer) -> None:
    status, _, _ = post(server, "/models/helpfulness/get_reward?run=exp-http", {"query": ["a"]})
    assert status == 200
    runs = server.experiments.ListRuns(experiments_pb2.ListRunsRequest()).runs
    (run,) = [run for run in runs if run.run == "exp-http"]
    assert (run.model, run.version, run.items) == ("helpfulness", 1, 1)


@pytest.mark.parametrize(("path", "body"), [("get_reward", {"query": ["a"]}), ("classify", {"input": "a"})])
def test_calibrated_scores_are_asked_for_in_the_query_of_the_url(
    tmp_path: Path, versions: list[Path], path: str, body: Any
) -> None:
    with running(tmp_path / "home") as server:
        server.deploy("m", versions[0])
        server.calibrate("m", CalibrationRecord("c" * 64, 2.0, 10.0))
        raw, same, calibrated = (
            post(server, f"/models/m@1/{path}{query}", body)[1]
            for query in ("", "?calibrated=false", "?calibrated=true")
        )
    of = (lambda answer: answer["rewards"]) if path == "get_reward" else (lambda answer: answer["data"][0]["probs"])
    assert of(raw) == of(same)
    assert of(calibrated) == pytest.approx([2 * of(raw)[0] + 10], abs=1e-5)
    assert [answer["calibration"] for answer in (raw, same, calibrated)] == [None, None, "c" * 64]


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/get_reward?calibrated=true", {"query": ["a"]}, 409, "NOT_CALIBRATED"),
        ("/get_reward?calibrated=maybe", {"query": ["a"]}, 400, "INVALID_ARGUMENT"),
        ("/get_reward?calibrate=true", {"query": ["a"]}, 400, "INVALID_ARGUMENT"),
        ("/get_reward?run=a&run=b", {"query": ["a"]}, 400, "INVALID_ARGUMENT"),
        ("/get_reward", b"{", 400, "MALFORMED_REQUEST"),
        ("/get_reward", b'{"query": ["\xff"]}', 400, "MALFORMED_REQUEST"),
        ("/get_reward", {"queries": []}, 400, "INVALID_ARGUMENT"),
        ("/get_reward", {"query": ["a", ""]}, 422, "EMPTY_ITEM"),
        ("/get_reward", {"query": ["word " * 2000]}, 422, "ITEM_TOO_LONG"),
        ("/get_reward", {"query": ["x" * 200_000]}, 413, "REQUEST_TOO_LARGE"),
        ("/classify", {"input": "a", "use_activation": True}, 400, "INVALID_ARGUMENT"),
        ("/classify", {"input": [10**6]}, 422, "INVALID_TOKEN_IDS"),
        ("/models/nonsense/get_reward", {"query": ["a"]}, 404, "MODEL_NOT_FOUND"),
        ("/models/helpfulness@9/classify", {"input": "a"}, 404, "VERSION_NOT_FOUND"),
        ("/models/a@b@c/classify", {"input": "a"}, 400, "INVALID_SELECTOR"),
        ("/nothing", {}, 404, "INVALID_ARGUMENT"),
        ("/healthz", {}, 405, "INVALID_ARGUMENT"),
    ],
)
def test_what_is_wrong_is_said_in_json(server: RunningServer, path: str, body: Any, status: int, reason: str) -> None:
    got_status, answer, _ = post(server, path, body)
    assert (got_status, answer["error"]["reason"]) == (status, reason)
    assert answer["error"]["message"]
    assert post(server, "/get_reward", {"query": ["a"]})[0] == 200


def test_a_token_beyond_its_limit_is_429_with_the_time_to_come_back(tmp_path: Path, versions: list[Path]) -> None:
    for name, limits in (("slow", Limits(max_items_per_s=2.0)), ("free", Limits())):
        add_token(tmp_path / "tokens.toml", TokenEntry(name, Role.DEPLOY, sha256=hash_of(name), limits=limits))
    free, slow = ({"Authorization": f"Bearer {name}"} for name in ("free", "slow"))
    with running(tmp_path / "home", auth=AuthSettings(tokens=tmp_path / "tokens.toml")) as server:
        deploy = (("authorization", "Bearer free"),)
        register = models_pb2.RegisterVersionRequest(model="m", path=str(versions[0]))
        server.models.RegisterVersion(register, metadata=deploy)
        server.models.LoadVersion(models_pb2.LoadVersionRequest(selector="m@1"), metadata=deploy)
        path, body = "/models/m@1/get_reward", {"query": ["a"] * 200}
        assert post(server, path, body, **slow)[0] == 200  # leaves a debt of 198 items
        status, answer, headers = post(server, path, body, **slow)
        assert (status, answer["error"]["reason"]) == (429, "RATE_LIMITED")
        assert 1 < answer["error"]["retry_after_seconds"] <= int(headers["Retry-After"]) <= 100
        assert post(server, path, body, **free)[0] == 200


def test_the_request_id_comes_back(server: RunningServer) -> None:
    _, _, headers = post(server, "/get_reward", {"query": ["a"]}, **{"x-request-id": "r-17"})
    assert headers["x-request-id"] == "r-17"
    status, _, headers = post(server, "/get_reward", {"query": ["a"]}, **{"x-request-id": "r-\xff"})
    assert (status, headers["x-request-id"]) == (200, "r-?")  # what is no text is not kept beside the scores


def test_without_a_default_model_the_bare_path_wants_one(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        status, answer, _ = post(server, "/get_reward", {"query": ["a"]})
        assert (status, answer["error"]["reason"]) == (400, "INVALID_ARGUMENT")
        assert "/models/NAME@LABEL/get_reward" in answer["error"]["message"]


def test_without_a_default_model_the_body_may_name_one(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path) as server:
        server.deploy("helpfulness", versions[0])
        status, answer, _ = post(server, "/classify", {"model": "helpfulness@stable", "input": "good"})
        assert (status, answer["version"]) == (200, 1)
        status, answer, _ = post(server, "/classify", {"model": "/models/qwen", "input": "good"})
        assert (status, answer["error"]["reason"]) == (400, "INVALID_SELECTOR")
        status, answer, _ = post(server, "/classify", {"model": ["helpfulness"], "input": "good"})
        assert (status, answer["error"]["reason"]) == (400, "INVALID_ARGUMENT")


def test_a_chat_version_scores_messages(tmp_path: Path) -> None:
    folder = make_version(tmp_path / "chat", 3, checkpoint={"chat_template": CHAT_TEMPLATE})
    with running(tmp_path / "home") as server:
        server.deploy("chatty", folder)
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
        status, answer, _ = post(server, "/models/chatty/classify", {"messages": messages})
        assert status == 200
        rendered = "[user] Hi<eos>[assistant] Hello!<eos>"
        _, whole, _ = post(server, "/models/chatty/classify", {"input": rendered})
        assert answer["data"][0]["probs"] == pytest.approx(whole["data"][0]["probs"], abs=1e-5)


def test_grpc_on_the_http_port_is_told_so_on_both_sides(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        RewardClient(server.app.http_address, timeout_s=2.0) as client,
        pytest.raises(ServerUnreachable, match="this is an HTTP port: give the one of `rm-server serve --listen`"),
    ):
        client.score("helpfulness", prompts=["a"], completions=["b"])
    told = [record for record in caplog.records if "not HTTP/1.1" in record.getMessage()]
    assert told
    assert all(record.exc_info is None and record.levelname == "WARNING" for record in told)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_body_that_cannot_be_decoded_is_a_wrong_request_and_no_defect(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    plain, wrong = b'{"query": ["a"]}', {"Content-Encoding": "gzip"}
    status, answer, _ = post(server, "/get_reward", plain, **wrong)
    assert (status, answer["error"]["reason"]) == (400, "MALFORMED_REQUEST")
    assert "gzip" in answer["error"]["message"]
    assert post(server, "/get_reward", gzip.compress(plain), **wrong)[0] == 200
    assert not [record for record in caplog.records if record.exc_info]
