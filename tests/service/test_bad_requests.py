"""What is wrong with a request is said by a typed error, to its sender alone."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from rm_api.oip import inference_pb2, inference_pb2_grpc
from rm_api.v1 import errors_pb2, models_pb2, scoring_pb2
from running_server import RunningServer, error_of, make_version, running, score_request

from rm_server.api.convert import MAX_MESSAGES
from rm_server.config import LimitSettings, TransportSettings

LONG = "word " * 2000


@pytest.fixture(autouse=True)
def alive_afterwards(server: RunningServer) -> object:
    yield
    (result,) = server.score("helpfulness@1", "still here").results
    assert math.isfinite(result.score.value)


def item_error(result: scoring_pb2.ItemResult) -> int:
    assert result.WhichOneof("outcome") == "error"
    assert result.error.message
    return result.error.reason


def test_an_empty_list_is_answered_with_an_empty_list(server: RunningServer) -> None:
    response = server.scoring.Score(scoring_pb2.ScoreRequest(model="helpfulness@stable"))
    assert (list(response.results), response.version) == ([], 1)
    assert list(server.score("helpfulness@1").results) == []


@pytest.mark.parametrize(
    ("selector", "status", "reason"),
    [
        ("nonsense", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ("nonsense@3", grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ("helpfulness@99", grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND"),
        ("helpfulness@nonsense", grpc.StatusCode.NOT_FOUND, "LABEL_NOT_FOUND"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SELECTOR"),
        ("a@b@c", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SELECTOR"),
        ("../etc", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SELECTOR"),
        ("x" * 100_000, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SELECTOR"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_selector_that_names_nothing(
    server: RunningServer, selector: str, status: grpc.StatusCode, reason: str
) -> None:
    got_status, error = error_of(lambda: server.score(selector, "a"))
    assert (got_status, errors_pb2.ErrorReason.Name(error.reason)) == (status, f"ERROR_REASON_{reason}")


def test_a_bare_name_without_stable_or_lease(server: RunningServer, versions: list[Path]) -> None:
    server.deploy("unlabelled", versions[2], label=None)
    status, error = error_of(lambda: server.score("unlabelled", "a"))
    assert (status, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_NO_DEFAULT_VERSION)


def test_a_version_that_is_not_loaded(server: RunningServer, versions: list[Path]) -> None:
    request = models_pb2.RegisterVersionRequest(model="sleeping", path=str(versions[0]))
    server.models.RegisterVersion(request)
    status, error = error_of(lambda: server.score("sleeping@1", "a"))
    assert (status, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_VERSION_NOT_LOADED)


def test_an_item_that_is_too_long_is_refused_alone(server: RunningServer) -> None:
    good, long, also_good = server.score("helpfulness@1", "a", LONG, "b").results
    assert item_error(long) == errors_pb2.ERROR_REASON_ITEM_TOO_LONG
    assert math.isfinite(good.score.value)
    assert math.isfinite(also_good.score.value)


@pytest.mark.parametrize("truncation", ["TRUNCATION_KEEP_END", "TRUNCATION_KEEP_START"])
def test_an_item_that_is_too_long_is_cut_if_asked_and_that_is_said(server: RunningServer, truncation: str) -> None:
    options = scoring_pb2.ScoreOptions(truncation=truncation)  # type: ignore[arg-type]
    short, long = server.score("helpfulness@1", "a", LONG, options=options).results
    assert (short.truncated, long.truncated) == (False, True)
    assert 0 < long.num_tokens <= 256
    assert math.isfinite(long.score.value)


def test_a_version_may_cut_by_its_own_rule(server: RunningServer, tmp_path: Path) -> None:
    folder = make_version(tmp_path / "cutting", 5, truncation="keep_end", max_tokens=32)
    server.deploy("cutting", folder)
    (cut,) = server.score("cutting", LONG).results
    assert (cut.truncated, cut.num_tokens) == (True, 32)
    options = scoring_pb2.ScoreOptions(truncation=scoring_pb2.TRUNCATION_REFUSE)
    (refused,) = server.score("cutting", LONG, options=options).results
    assert item_error(refused) == errors_pb2.ERROR_REASON_ITEM_TOO_LONG


def test_invalid_utf8_is_malformed(server: RunningServer) -> None:
    raw = score_request("helpfulness@1", "XYZ").SerializeToString().replace(b"XYZ", b"\xff\xfe!")
    status, error = error_of(lambda: server.channel.unary_unary("/rm_api.v1.ScoringService/Score")(raw))
    assert (status, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_MALFORMED_REQUEST)
    assert "UTF-8" in error.message


def with_ids(*ids: int) -> scoring_pb2.Content:
    return scoring_pb2.Content(token_ids=scoring_pb2.TokenIds(ids=ids))


def test_wrong_token_ids_fail_their_item(server: RunningServer) -> None:
    request = scoring_pb2.ScoreRequest(model="helpfulness@1")
    group = request.groups.add(prompt=with_ids(7, 8))
    group.completions.extend([with_ids(9), with_ids(10**6), with_ids(2**32 - 1), with_ids()])
    good, large, huge, empty = server.scoring.Score(request).results
    assert math.isfinite(good.score.value)
    assert item_error(large) == item_error(huge) == errors_pb2.ERROR_REASON_INVALID_TOKEN_IDS
    assert item_error(empty) == errors_pb2.ERROR_REASON_EMPTY_ITEM


def test_text_and_ids_do_not_mix_in_an_item(server: RunningServer) -> None:
    request = scoring_pb2.ScoreRequest(model="helpfulness@1")
    group = request.groups.add(prompt=with_ids(7))
    group.completions.extend([scoring_pb2.Content(text="a"), with_ids(9)])
    mixed, good = server.scoring.Score(request).results
    assert item_error(mixed) == errors_pb2.ERROR_REASON_UNSUPPORTED_CONTENT
    assert math.isfinite(good.score.value)


def test_messages_need_a_chat_template(server: RunningServer) -> None:
    content = scoring_pb2.Content(
        messages=scoring_pb2.Messages(messages=[scoring_pb2.Message(role="assistant", content="Hi")])
    )
    request = scoring_pb2.ScoreRequest(model="helpfulness@1")
    request.groups.add(completions=[content])
    (result,) = server.scoring.Score(request).results
    assert item_error(result) == errors_pb2.ERROR_REASON_UNSUPPORTED_CONTENT


def test_an_empty_completion_has_no_score(server: RunningServer) -> None:
    empty, good = server.score("helpfulness@1", "", "a").results
    assert item_error(empty) == errors_pb2.ERROR_REASON_EMPTY_ITEM
    assert math.isfinite(good.score.value)


@pytest.mark.parametrize("options", [{"priority": 11}, {"priority": -(2**31)}, {"truncation": 77}], ids=str)
def test_options_out_of_range(server: RunningServer, options: dict[str, int]) -> None:
    message = scoring_pb2.ScoreOptions(**options)  # type: ignore[arg-type]
    status, error = error_of(lambda: server.score("helpfulness@1", "a", options=message))
    assert (status, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_INVALID_ARGUMENT)
    assert next(iter(options)) in error.message


def test_a_run_with_an_impossible_name(server: RunningServer) -> None:
    status, _ = error_of(lambda: server.score("helpfulness@1", "a", run="no spaces, please"))
    assert status is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_that_is_too_large_is_refused_by_grpc(server: RunningServer) -> None:
    """gRPC stops reading before our code sees it, so there is no typed error; the connection lives on."""
    request = score_request("helpfulness@1", "x" * (100 * 1024 * 1024))
    with pytest.raises(grpc.RpcError) as caught:
        server.scoring.Score(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in caught.value.details()


def test_limits_are_settings(tmp_path: Path, versions: list[Path]) -> None:
    transport, limits = TransportSettings(max_message_mb=0.01), LimitSettings(max_items_per_request=3)
    with running(tmp_path, transport=transport, limits=limits) as small:
        small.deploy("m", versions[0])
        with pytest.raises(grpc.RpcError) as caught:
            small.score("m", "x" * 20_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status, error = error_of(lambda: small.score("m", "a", "b", "c", "d"))
        assert (status, error.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            errors_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
        )
        assert len(small.score("m", "a", "b", "c").results) == 3


def test_too_many_items_are_refused_before_anything_is_made_of_them(server: RunningServer) -> None:
    """Else millions of tiny ones stop the event loop: what is wrong with them, nobody has found out."""
    wrong = scoring_pb2.ScoreOptions(priority=11)
    nothing = scoring_pb2.Group()
    completions = scoring_pb2.Group(completions=[scoring_pb2.Content()] * 5000)
    message = scoring_pb2.Message()
    dialogue = scoring_pb2.Content(messages=scoring_pb2.Messages(messages=[message] * (MAX_MESSAGES + 1)))
    for groups, says in (
        ([nothing] * 5000, "5000 groups"),
        ([completions], "5000 completions"),
        ([scoring_pb2.Group(completions=[dialogue])], f"{MAX_MESSAGES + 1} chat messages"),
        ([scoring_pb2.Group(prompt=dialogue)], f"{MAX_MESSAGES + 1} chat messages"),
    ):
        request = scoring_pb2.ScoreRequest(model="helpfulness@1", groups=groups, options=wrong)
        status, error = error_of(lambda request=request: server.scoring.Score(request, timeout=60))
        assert (status, error.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            errors_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
        )
        assert says in error.message
    infer = inference_pb2_grpc.GRPCInferenceServiceStub(server.channel).ModelInfer
    tensors = inference_pb2.ModelInferRequest(model_name="helpfulness@1")
    tensors.inputs.add(name="completion", datatype="BYTES", shape=[5000]).contents.bytes_contents.extend(
        [b"\xff"] * 5000
    )
    assert error_of(lambda: infer(tensors))[1].reason == errors_pb2.ERROR_REASON_REQUEST_TOO_LARGE
    for path, field in (("get_reward", "query"), ("classify", "input")):
        body = json.dumps({field: [None] * 5000}).encode()
        url = f"http://{server.app.http_address}/models/helpfulness@1/{path}"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, body), timeout=60)
        assert caught.value.code == 413


@pytest.mark.parametrize("name", ["reward_model.json", "composite.json", "model.safetensors.index.json"])
def test_a_device_is_not_read(server: RunningServer, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/null")  # of /dev/zero, the test would not say what it read
    request = models_pb2.RegisterVersionRequest(model="device", path=str(tmp_path))
    _, error = error_of(lambda: server.models.RegisterVersion(request))
    assert error.reason == errors_pb2.ERROR_REASON_ARTIFACT_UNREADABLE
    assert f"{name} is neither a file nor a folder" in error.message


OPERATORS_MISTAKES: dict[str, tuple[Callable[[RunningServer], object], str]] = {
    "register: no path": (
        lambda server: server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="m")),
        "INVALID_ARGUMENT",
    ),
    "register: no folder": (
        lambda server: server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="m", path="/nowhere")),
        "ARTIFACT_UNREADABLE",
    ),
    # As of a folder that is closed to the server's user, the system does not say whether it is there.
    "register: no right path": (
        lambda server: server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="m", path="x" * 5000)),
        "ARTIFACT_UNREADABLE",
    ),
    "list: unknown model": (
        lambda server: server.models.ListModels(models_pb2.ListModelsRequest(model="nonsense")),
        "MODEL_NOT_FOUND",
    ),
    "get: unknown version": (
        lambda server: server.models.GetVersion(models_pb2.GetVersionRequest(selector="helpfulness@9")),
        "VERSION_NOT_FOUND",
    ),
    "load: unknown precision": (
        lambda server: server.models.LoadVersion(
            models_pb2.LoadVersionRequest(selector="helpfulness@1", precision="int3")
        ),
        "INVALID_ARGUMENT",
    ),
    "load: other precision": (
        lambda server: server.models.LoadVersion(
            models_pb2.LoadVersionRequest(selector="helpfulness@1", precision="bf16")
        ),
        "VERSION_IN_USE",
    ),
    "unload: labelled": (
        lambda server: server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="helpfulness@stable")),
        "VERSION_IN_USE",
    ),
    "label: digits": (
        lambda server: server.models.SetLabel(models_pb2.SetLabelRequest(model="helpfulness", label="7", version=1)),
        "INVALID_ARGUMENT",
    ),
    "label: unknown version": (
        lambda server: server.models.SetLabel(models_pb2.SetLabelRequest(model="helpfulness", label="a", version=9)),
        "VERSION_NOT_FOUND",
    ),
    "label: unknown label": (
        lambda server: server.models.RemoveLabel(models_pb2.RemoveLabelRequest(model="helpfulness", label="nope")),
        "LABEL_NOT_FOUND",
    ),
    "delete: loaded": (
        lambda server: server.models.DeleteVersion(models_pb2.DeleteVersionRequest(model="helpfulness", version=1)),
        "VERSION_IN_USE",
    ),
    "history: unknown model": (
        lambda server: server.models.ListHistory(models_pb2.ListHistoryRequest(model="nonsense")),
        "MODEL_NOT_FOUND",
    ),
}


@pytest.mark.parametrize("mistake", OPERATORS_MISTAKES)
def test_an_operator_s_mistake_is_refused_by_its_reason(server: RunningServer, mistake: str) -> None:
    call, reason = OPERATORS_MISTAKES[mistake]
    _, error = error_of(lambda: call(server))
    assert errors_pb2.ErrorReason.Name(error.reason) == f"ERROR_REASON_{reason}"
    assert error.message
