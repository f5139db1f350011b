"""Rules versions over a socket: exact numbers, beside networks on the same server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from rm_api.v1 import errors_pb2, models_pb2, scoring_pb2
from running_server import RunningServer, error_of, make_rules_version, running

EVEN = {"type": "token_id_share", "modulus": 2, "residue": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, versions: list[Path]) -> Iterator[RunningServer]:
    """Rules over ids, rules over text, and a network."""
    root = tmp_path_factory.mktemp("rules")
    with running(root / "home") as server:
        server.deploy("even", make_rules_version(root / "even", EVEN))
        server.deploy("short", make_rules_version(root / "short", {"type": "length", "max": 3, "weight": 0.5}))
        server.deploy("helpfulness", versions[0])
        yield server


def score_ids(server: RunningServer, *completions: list[int], prompt: tuple[int, ...] = (1, 2)) -> list[float]:
    request = scoring_pb2.ScoreRequest(model="even")
    group = request.groups.add(prompt=scoring_pb2.Content(token_ids=scoring_pb2.TokenIds(ids=prompt)))
    for ids in completions:
        group.completions.add().token_ids.ids.extend(ids)
    response = server.scoring.Score(request)
    assert response.transform == scoring_pb2.TRANSFORM_RULE
    assert all(result.HasField("score") for result in response.results)
    return [result.score.value for result in response.results]


def test_the_share_of_even_ids_is_exact(server: RunningServer) -> None:
    assert score_ids(server, [2, 4], [2, 3], [1, 3, 5], [0, 1, 2]) == [1.0, 0.5, 0.0, 2 / 3]


def test_scores_have_the_same_bits_alone_and_together(server: RunningServer) -> None:
    completions = [[number, number + 1, number // 3] for number in range(50)]
    assert score_ids(server, *completions) == [score_ids(server, completion)[0] for completion in completions]


def test_ids_and_text_are_not_confused(server: RunningServer) -> None:
    (result,) = server.score("even", "text").results
    assert result.error.reason == errors_pb2.ERROR_REASON_UNSUPPORTED_CONTENT
    (result,) = server.score("short", "a b").results
    assert result.HasField("score")


def test_rules_take_no_memory_and_have_no_precision(server: RunningServer) -> None:
    version = server.models.GetVersion(models_pb2.GetVersionRequest(selector="even@1")).version
    assert (version.kind, version.memory_bytes, version.precision) == ("rules", 0, "")
    assert version.state == models_pb2.VERSION_STATE_READY


def test_a_rule_that_nobody_knows_is_refused_when_it_is_loaded(server: RunningServer, tmp_path: Path) -> None:
    folder = make_rules_version(tmp_path / "unknown", {"type": "astrology"})

    def deploy() -> None:
        server.deploy("even", folder)

    status, error = error_of(deploy)
    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == errors_pb2.ERROR_REASON_UNSUPPORTED_ARTIFACT
    assert "astrology" in error.message
    assert score_ids(server, [2, 4]) == [1.0]
