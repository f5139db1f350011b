"""Every error has its status and reason, and every reason of the contract has its error."""

from __future__ import annotations

import inspect

import grpc
import pytest
from rm_api.v1 import errors_pb2

from rm_server import errors
from rm_server.api.error_map import (
    FAMILIES,
    TABLE,
    error_message,
    outcome_of,
    short_message,
    trailing_metadata,
)

ALL_CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.RmError)]


@pytest.mark.parametrize("cls", ALL_CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_is_in_the_table_or_a_family(cls: type[errors.RmError]) -> None:
    assert (cls in TABLE) != (cls in FAMILIES)


def test_every_reason_of_the_contract_belongs_to_one_class() -> None:
    reasons = sorted(outcome.reason for outcome in TABLE.values())
    assert reasons == sorted(set(errors_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"})


@pytest.mark.parametrize("cls", TABLE, ids=lambda cls: cls.__name__)
def test_metrics_and_logs_use_the_contract_s_word(cls: type[errors.RmError]) -> None:
    assert f"ERROR_REASON_{cls('?').reason.upper()}" == TABLE[cls].reason


def test_no_error_is_ok() -> None:
    assert all(outcome.status is not grpc.StatusCode.OK for outcome in TABLE.values())
    assert all(400 <= outcome.http_status < 600 for outcome in TABLE.values())


@pytest.mark.parametrize(
    "cls", [errors.QueueFull, errors.Draining, errors.WorkerFailed, errors.OutOfMemory, errors.CatalogUnavailable]
)
def test_verl_s_client_repeats_what_may_work_later(cls: type[errors.RmError]) -> None:
    """It repeats 5xx only; any 4xx ends the training."""
    assert TABLE[cls].http_status == 503


@pytest.mark.parametrize("cls", sorted(FAMILIES, key=lambda cls: cls.__name__))
def test_a_family_without_a_member_is_a_defect(cls: type[errors.RmError]) -> None:
    assert outcome_of(cls("?")).reason == "ERROR_REASON_INTERNAL"


def test_a_later_subclass_is_answered_like_its_parent() -> None:
    class QueueOfRunFull(errors.QueueFull):
        pass

    assert outcome_of(QueueOfRunFull("full")) == TABLE[errors.QueueFull]


def test_metadata_carries_the_error_and_the_hint() -> None:
    metadata = dict(trailing_metadata(errors.QueueFull("100 items wait.", retry_after_s=0.25)))
    assert metadata["grpc-retry-pushback-ms"] == "250"
    carried = errors_pb2.Error.FromString(metadata["rm-error-bin"])
    assert carried == errors_pb2.Error(
        reason="ERROR_REASON_QUEUE_FULL", message="100 items wait.", retry_after_seconds=0.25
    )


def test_without_a_hint_there_is_no_pushback() -> None:
    assert "grpc-retry-pushback-ms" not in dict(trailing_metadata(errors.ItemTooLong("600 tokens, limit 512.")))


@pytest.mark.parametrize("text", ["é" * 100_000, "a" * 100_000, "\ud800 lone surrogate"])
def test_a_message_always_fits_the_trailers(text: str) -> None:
    error = errors.InvalidSelector(text)
    assert len(short_message(error).encode()) < 1600
    assert error_message(error).SerializeToString()
