from __future__ import annotations

import inspect
import pickle

import grpc
import pytest
from rm_api.v1 import errors_pb2

from ppo_client.client import errors
from ppo_client.client.error_map import BY_REASON, from_error, from_item, from_status

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
REASONS = [value.name.removeprefix("ERROR_REASON_") for value in errors_pb2.ErrorReason.DESCRIPTOR.values]


def tree_in_docstring() -> dict[str, str]:
    """Class to the class above it."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        stem = line.lstrip("│├└─ ")
        if line == "RewardClientError":
            path = ["RewardClientError"]
        elif "── " in line:
            depth = (line.index("── ") + 3) // 4
            path = [*path[:depth], stem.split()[0]]
            parents[path[-1]] = path[-2]
    return parents


def test_the_docstring_shows_the_tree_as_it_is() -> None:
    parents = tree_in_docstring()
    assert parents.keys() == {cls.__name__ for cls in CLASSES} - {"RewardClientError"}
    for cls in CLASSES:
        if cls is not errors.RewardClientError:
            assert parents[cls.__name__] in {base.__name__ for base in cls.__bases__}, cls


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_a_trip_to_another_process(cls: type[errors.RewardClientError]) -> None:
    error = (
        cls("what came", retry_after_s=2.0)
        if "retry_after_s" in inspect.signature(cls).parameters
        else cls("what came")
    )
    error.target, error.num_attempts = "a:1", 3
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error) == "what came [from a:1, after 3 attempts]"
    assert copy.retry_after_s == error.retry_after_s


def test_failed_items_survive_the_trip_with_their_scores() -> None:
    error = errors.ItemsFailed("one", errors={1: errors.ItemTooLong("9 tokens")}, scores={0: 0.5}, version=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.scores, copy.version, str(copy.errors[1])) == ({0: 0.5}, 3, "9 tokens")


def test_the_usual_handlers_catch_them() -> None:
    assert issubclass(errors.InvalidTokenIds, ValueError)
    assert issubclass(errors.InvalidSettings, ValueError)
    assert issubclass(errors.ModelNotFound, LookupError)
    assert issubclass(errors.DeadlineExceeded, TimeoutError)


def test_every_reason_of_the_contract_has_its_class() -> None:
    assert set(BY_REASON) == set(REASONS) - {"UNSPECIFIED"}


@pytest.mark.parametrize("reason", BY_REASON)
def test_a_reason_decides_whatever_the_status_says(reason: str) -> None:
    error = errors_pb2.Error(reason=f"ERROR_REASON_{reason}", message="why", retry_after_seconds=1.5)
    ours = from_status(grpc.StatusCode.UNKNOWN, "details", [("rm-error-bin", error.SerializeToString())])
    assert type(ours) is BY_REASON[reason]
    assert (ours.message, ours.retry_after_s) == ("why", 1.5)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_without_a_reason_the_status_decides_and_the_text_says_what_to_look_at(code: grpc.StatusCode) -> None:
    ours = from_status(code, "it broke", [])
    assert ours.message.startswith(f"{code.name}: it broke; ")
    assert ours.retry_after_s is None


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.ServerUnreachable),
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.UNIMPLEMENTED, errors.NotARewardServer),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Unavailable),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.UNKNOWN, errors.ServerDefect),
    ],
)
def test_status_to_class(code: grpc.StatusCode, cls: type[errors.RewardClientError]) -> None:
    assert type(from_status(code, "", [])) is cls


@pytest.mark.parametrize("side", ["SERVER: ", "CLIENT: ", ""])
def test_a_message_that_is_too_large_for_grpc_is_not_a_full_queue(side: str) -> None:
    details = f"{side}Received message larger than max (6000000 vs. 4194304)"
    ours = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, details, [])
    assert type(ours) is errors.RequestTooLarge
    assert "max_request_bytes" in ours.message


@pytest.mark.parametrize("raw", [b"\xff\xff", errors_pb2.Error(reason=9999, message="new").SerializeToString(), b""])
def test_an_entry_that_says_nothing_leaves_the_status_to_decide(raw: bytes) -> None:
    ours = from_status(grpc.StatusCode.UNAVAILABLE, "gone", [("rm-error-bin", raw)])
    assert type(ours) is errors.ServerUnreachable


@pytest.mark.parametrize(("value", "expected"), [("250", 0.25), ("-1", None), ("soon", None), ("0", None)])
def test_the_hint_of_a_proxy_is_understood(value: str, expected: float | None) -> None:
    ours = from_status(grpc.StatusCode.UNAVAILABLE, "", [("grpc-retry-pushback-ms", value)])
    assert ours.retry_after_s == expected


def test_a_proxy_of_the_environment_is_named_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert "proxy" not in str(from_status(grpc.StatusCode.UNAVAILABLE, "", []))
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy:3128")
    found = str(from_status(grpc.StatusCode.UNAVAILABLE, "", []))
    assert "http_proxy is set" in found
    assert "secret" not in found


def test_an_item_with_a_reason_of_a_newer_server_has_failed_all_the_same() -> None:
    ours = from_item(errors_pb2.Error(reason=9999, message="new"))
    assert type(ours) is errors.ServerDefect
    assert "9999" in ours.message
    assert from_error(errors_pb2.Error(message="unset")) is None
