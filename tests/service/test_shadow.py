"""A shadow scores beside the callers over a socket: compared, never returned, never in anybody's way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rm_api.v1 import experiments_pb2, models_pb2, scoring_pb2
from running_server import Gate, RunningServer, error_of, make_rules_version, make_version, running
from scipy import stats
from waiting import wait_until

from rm_server.config import EngineSettings, ShadowSettings
from rm_server.registry.manifest import Manifest, write_manifest
from rm_server.scoring.shadowing import is_in_share

KEY = ("helpfulness", 2)


@pytest.fixture
def server(tmp_path: Path, versions: list[Path]) -> Iterator[RunningServer]:
    """helpfulness@1 is stable; helpfulness@2 is loaded."""
    with running(tmp_path / "home") as server:
        server.deploy("helpfulness", *versions[:2])
        yield server


def set_shadow(server: RunningServer, share: float = 1.0, version: int = 2, **request: Any) -> experiments_pb2.Shadow:
    shadow = experiments_pb2.Shadow(model="helpfulness", version=version, share=share)
    return server.experiments.SetShadow(experiments_pb2.SetShadowRequest(shadow=shadow, **request)).shadow


def remove_shadow(server: RunningServer, version: int = 2) -> None:
    server.experiments.RemoveShadow(experiments_pb2.RemoveShadowRequest(model="helpfulness", version=version))


def report(server: RunningServer, version: int = 2, against: int = 0) -> dict[str, Any]:
    request = experiments_pb2.GetShadowReportRequest(model="helpfulness", version=version, against_version=against)
    found: dict[str, Any] = json.loads(server.experiments.GetShadowReport(request).report_json)
    return found


def outcomes(server: RunningServer, outcome: str, version: int = 2) -> float:
    return server.metric("rm_shadow_items_total", model="helpfulness", version=str(version), outcome=outcome)


def wait_for(server: RunningServer, outcome: str, num_items: int) -> None:
    """Until so many items of the shadow have come to this."""
    wait_until(lambda: outcomes(server, outcome) >= num_items)


def values(answer: scoring_pb2.ScoreResponse) -> list[float]:
    return [result.score.value for result in answer.results]


def texts(number: int, num: int = 3) -> list[str]:
    return [f"answer {number} {'again ' * place}" for place in range(num)]


# --- what is compared ---


def test_the_report_is_about_the_scores_that_both_give(server: RunningServer) -> None:
    set_shadow(server)
    live, by_shadow = [], []
    for number in range(20):
        answer = server.score("helpfulness@stable", *texts(number), run=f"run-{number % 2}")
        assert answer.version == 1  # the shadow is never returned
        live.append(values(answer))
    wait_for(server, "ok", 60)
    remove_shadow(server)
    for number in range(20):
        by_shadow.append(values(server.score("helpfulness@2", *texts(number))))
    found = report(server)
    x, y = np.ravel(live), np.ravel(by_shadow)
    said = found["agreement"]
    assert (found["version"], found["num_pairs"], found["pairs_by_version"]) == (1, 60, {"1": 60})
    assert said["shift"]["value"] == pytest.approx(float(np.mean(y - x)), abs=1e-5)
    assert said["scale"]["value"] == pytest.approx(float(y.std(ddof=1) / x.std(ddof=1)), rel=1e-4)
    assert said["pearson"]["value"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-4)
    assert said["spearman"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-2)
    flipped = sum(int(np.argmax(a) != np.argmax(b)) for a, b in zip(live, by_shadow, strict=True))
    assert (said["flips"]["num_groups"], said["flips"]["num_flipped"]) == (20, flipped)
    assert {(row["run"], row["num_pairs"]) for row in found["runs"]} == {("run-0", 30), ("run-1", 30)}
    assert "completion" not in found["worst"][0]  # texts are not logged unless allowed
    # Nor does the shadow's work count as the runs'.
    runs = server.experiments.ListRuns(experiments_pb2.ListRunsRequest()).runs
    assert [(run.run, run.version, run.items) for run in sorted(runs, key=lambda run: run.run)] == [
        ("run-0", 1, 30),
        ("run-1", 1, 30),
    ]


def test_worst_disagreements_have_their_texts_where_that_is_allowed(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path, shadow=ShadowSettings(log_texts=True)) as server:
        server.deploy("helpfulness", *versions[:2])
        set_shadow(server)
        server.score("helpfulness", *texts(1), prompt="Why?")
        wait_for(server, "ok", 3)
        assert {(row["prompt"], row["completion"]) for row in report(server)["worst"]} == {
            ("Why?", text) for text in texts(1)
        }


def test_the_share_is_of_calls_and_decided_by_their_ids(server: RunningServer) -> None:
    set_shadow(server, share=0.3)
    ids = [f"call-{number}" for number in range(40)]
    for request_id in ids:
        server.score("helpfulness", *texts(1), request_id=request_id)
    expected = sum(is_in_share(request_id, KEY, 0.3) for request_id in ids)
    assert 0 < expected < len(ids)
    wait_for(server, "ok", 3 * expected)
    remove_shadow(server)
    assert report(server)["num_pairs"] == 3 * expected


def test_shares_are_what_they_say_and_each_shadow_has_its_own_calls() -> None:
    ids = [f"call-{number}" for number in range(20_000)]
    first = {name for name in ids if is_in_share(name, KEY, 0.1)}
    second = {name for name in ids if is_in_share(name, ("helpfulness", 3), 0.1)}
    assert len(first) == pytest.approx(2000, rel=0.1)
    assert len(first & second) == pytest.approx(200, rel=0.35)
    assert first <= {name for name in ids if is_in_share(name, KEY, 0.2)}
    assert all(is_in_share(name, KEY, 1.0) for name in ids[:100])


def test_what_the_shadow_scored_itself_is_not_compared(server: RunningServer) -> None:
    set_shadow(server)
    server.score("helpfulness@2", *texts(1))
    server.score("helpfulness@1", *texts(1))
    wait_for(server, "ok", 3)
    assert report(server)["pairs_by_version"] == {"1": 3}
    assert report(server, against=1)["num_pairs"] == 3


def test_without_pairs_the_report_says_so(server: RunningServer) -> None:
    found = report(server)
    assert found.pop("create_time")
    assert found == {"model": "helpfulness", "shadow_version": 2, "num_pairs": 0, "pairs_by_version": {}}
    status, error = error_of(lambda: report(server, version=9))
    assert status is grpc.StatusCode.NOT_FOUND
    assert "no version 9" in error.message


def test_pairs_outlive_the_server(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path, shadow=ShadowSettings(flush_interval_s=3600)) as server:
        server.deploy("helpfulness", *versions[:2])
        set_shadow(server)
        server.score("helpfulness", *texts(1))
        wait_for(server, "ok", 3)
    with running(tmp_path) as server:
        assert report(server)["num_pairs"] == 3
        # The shadow is loaded and goes on.
        server.score("helpfulness", *texts(2))
        wait_for(server, "ok", 3)


def test_token_ids_are_compared_where_they_mean_the_same(tmp_path: Path, versions: list[Path]) -> None:
    other = make_version(tmp_path / "other", 9, family="bert")
    with running(tmp_path / "home") as server:
        server.deploy("helpfulness", *versions[:2], other)
        set_shadow(server)
        set_shadow(server, version=3)
        request = scoring_pb2.ScoreRequest(model="helpfulness@1", request_id="ids")
        group = request.groups.add()
        group.prompt.token_ids.ids.extend([5, 6])
        group.completions.add().token_ids.ids.extend([7, 8])
        assert server.scoring.Score(request).results[0].HasField("score")
        wait_for(server, "ok", 1)
        wait_until(lambda: outcomes(server, "dropped", 3) == 1)
        assert server.metric("rm_shadow_dropped_total", reason="other_vocabulary") == 1


def test_token_ids_are_compared_by_rules_and_by_a_composite_of_nothing_else(tmp_path: Path) -> None:
    even = {"type": "token_id_share", "modulus": 2, "residue": 0}
    composite = tmp_path / "composite"
    composite.mkdir()
    (composite / "composite.json").write_text(json.dumps({"components": [{"name": "even", "rule": even, "weight": 2}]}))
    write_manifest(composite, Manifest("composite", transform="weighted_sum"))
    with running(tmp_path / "home") as server:
        server.deploy("helpfulness", make_rules_version(tmp_path / "rules", even), composite)
        set_shadow(server)
        request = scoring_pb2.ScoreRequest(model="helpfulness@1", request_id="ids")
        request.groups.add().completions.add().token_ids.ids.extend([7, 8])
        assert server.scoring.Score(request).results[0].score.value == 0.5
        wait_for(server, "ok", 1)


# --- what it may be ---


def test_a_shadow_is_loaded_where_asked_and_neither_unloaded_nor_deleted(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path) as server:
        server.deploy("helpfulness", versions[0])
        server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="helpfulness", path=str(versions[1])))
        status, _ = error_of(lambda: set_shadow(server))
        assert status is grpc.StatusCode.FAILED_PRECONDITION
        made = set_shadow(server, share=0.25, load=True, comment="why not")
        listed = server.experiments.ListShadows(experiments_pb2.ListShadowsRequest(model="helpfulness")).shadows
        assert list(listed) == [made]
        unload = models_pb2.UnloadVersionRequest(selector="helpfulness@2")
        status, error = error_of(lambda: server.models.UnloadVersion(unload))
        assert (status, "shadow" in error.message) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        remove_shadow(server)
        server.models.UnloadVersion(unload)
        history = server.models.ListHistory(models_pb2.ListHistoryRequest(model="helpfulness")).entries
        assert [(entry.action, entry.comment) for entry in history if "shadow" in entry.action] == [
            ("remove_shadow", ""),
            ("set_shadow", "why not"),
        ]


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_that_is_none_is_refused(server: RunningServer, share: float) -> None:
    status, error = error_of(lambda: set_shadow(server, share=share))
    assert (status, "share" in error.message) == (grpc.StatusCode.INVALID_ARGUMENT, True)


# --- nobody notices it ---


def test_at_overload_the_shadow_goes_first_and_callers_get_their_scores(
    tmp_path: Path, versions: list[Path], gate: Gate
) -> None:
    engine = EngineSettings(
        workers=0, threads_per_worker=1, max_queued_items=100, max_batch_items=20, crowded_share=0.1, cache_items=0
    )
    with running(tmp_path, engine=engine) as server:
        server.deploy("helpfulness", *versions[:2])
        expected = [values(server.score("helpfulness@1", *texts(number, 20))) for number in range(5)]
        set_shadow(server)
        gate.close()
        with ThreadPoolExecutor(5) as threads:
            calls = [threads.submit(server.score, "helpfulness@1", *texts(number, 20)) for number in range(5)]
            gate.wait_for_batch()
            # One computes, one is in the worker's pipe.
            wait_until(lambda: server.metric("rm_queue_items") == 60)
            gate.open()
            answers = [call.result(60) for call in calls]
        assert [values(answer) for answer in answers] == [pytest.approx(scores, abs=1e-5) for scores in expected]
        assert {answer.version for answer in answers} == {1}
        # Of the hundred items, those answered while others waited; the last ones may have been compared.
        wait_until(lambda: outcomes(server, "dropped") + outcomes(server, "ok") == 100)
        assert server.metric("rm_shadow_dropped_total", reason="overload") >= 20
        assert server.metric("rm_queue_items") == 0


def test_a_shadow_that_fails_fails_nobody_else(tmp_path: Path, versions: list[Path]) -> None:
    refusing = make_version(tmp_path / "short", 9, max_tokens=64, truncation="refuse")
    with running(tmp_path / "home") as server:
        server.deploy("helpfulness", versions[0], refusing)
        too_long = ["a long answer " * 12] * 3
        expected = values(server.score("helpfulness@1", *too_long))
        set_shadow(server)
        assert values(server.score("helpfulness@1", *too_long)) == pytest.approx(expected, abs=1e-6)
        wait_for(server, "item_too_long", 3)
        assert report(server)["num_pairs"] == 0
