"""Composites over a socket: the sum is the one computed by hand, and the parts stay while the composite needs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from rm_api.v1 import errors_pb2, models_pb2, scoring_pb2
from running_server import RunningServer, error_of, make_rules_version, make_version, running

from ppo_client import RewardClient
from rm_server import cli
from rm_server.registry.home import open_home
from rm_server.registry.manifest import GoldenExample, Manifest, read_manifest, write_manifest

TEXTS = ["Good.", "It is a fine day, and nobody swears.", "damn it, damn it all", "x", "A longer one " * 12]
BREVITY = {"type": "length", "max": 3, "soft": 4}
SWEARING = {"type": "forbidden_words", "words": ["damn"]}


def make_composite(folder: Path, *components: dict[str, Any], golden: tuple[GoldenExample, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    (folder / "composite.json").write_text(json.dumps({"components": components}))
    write_manifest(folder, Manifest("composite", transform="weighted_sum", golden=golden))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two classifiers of three labels, of different families, and rules."""
    root = tmp_path_factory.mktemp("parts")
    labels = {"num_labels": 3}
    return {
        "grammar": make_version(root / "grammar", 1, family="bert", checkpoint=labels, label_index=1),
        "sentiment": make_version(root / "sentiment", 2, family="gpt2", checkpoint=labels, label_index=1),
        "style": make_rules_version(root / "style", {**SWEARING, "name": "swearing"}, {**BREVITY, "weight": 2.0}),
    }


@pytest.fixture
def server(tmp_path: Path, folders: dict[str, Path]) -> Iterator[RunningServer]:
    """The parts are registered and `stable`; not loaded but for the label."""
    with running(tmp_path / "home") as server:
        for model, folder in folders.items():
            server.deploy(model, folder)
        yield server


def part(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": f"{name}@stable", **more}


def values(response: scoring_pb2.ScoreResponse) -> list[float]:
    assert all(result.HasField("score") for result in response.results)
    return [result.score.value for result in response.results]


def state_of(server: RunningServer, selector: str) -> int:
    version = server.models.GetVersion(models_pb2.GetVersionRequest(selector=selector)).version
    return int(version.state)


def load(server: RunningServer, selector: str) -> None:
    server.models.LoadVersion(models_pb2.LoadVersionRequest(selector=selector))


def unload(server: RunningServer, selector: str, force: bool = False) -> None:
    server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector=selector, force=force))


def register(server: RunningServer, model: str, folder: Path) -> models_pb2.Version:
    request = models_pb2.RegisterVersionRequest(model=model, path=str(folder))
    return server.models.RegisterVersion(request).version


def test_the_sum_is_the_one_computed_by_hand(server: RunningServer, tmp_path: Path) -> None:
    composite = make_composite(
        tmp_path / "quality",
        part("grammar", weight=1.0),
        part("sentiment", weight=0.5, gain=2.0, bias=-1.0, clip=[-0.5, 0.5]),
        {"name": "again", "version": "grammar@1", "weight": -0.25, "gain": 3},
        {"name": "brevity", "rule": BREVITY, "weight": 0.5},
        {"name": "swearing", "rule": SWEARING, "weight": -1.0, "clip": [0, 1]},
        part("style", weight=0.1),
    )
    server.deploy("quality", composite)
    grammar, sentiment = values(server.score("grammar@1", *TEXTS)), values(server.score("sentiment@1", *TEXTS))
    style = values(server.score("style@1", *TEXTS))
    with RewardClient(server.app.grpc_address, run="exp") as client:
        scores = client.score("quality@1", prompts=["Hi"] * len(TEXTS), completions=TEXTS)
    brevity = [1.0, 0.0, 0.5, 1.0, 0.0]
    swearing = [0.0, 0.0, 1.0, 0.0, 0.0]
    for index, total in enumerate(scores.values):
        clipped = min(max(2 * sentiment[index] - 1, -0.5), 0.5)
        by_hand = {
            "grammar": (1.0, grammar[index]),
            "sentiment": (0.5, clipped),
            "again": (-0.25, 3 * grammar[index]),
            "brevity": (0.5, brevity[index]),
            "swearing": (-1.0, swearing[index]),
            "style": (0.1, style[index]),
        }
        assert total == pytest.approx(sum(weight * value for weight, value in by_hand.values()), abs=1e-6)
        components = scores.components[index]
        assert [component.name for component in components] == list(by_hand)
        for component in components:
            assert (component.weight, component.value) == pytest.approx(by_hand[component.name], abs=1e-6)
    assert [component.version for component in scores.components[0]] == [1, 1, 1, 0, 0, 1]
    digest = server.models.GetVersion(models_pb2.GetVersionRequest(selector="grammar@1")).version.digest
    assert scores.components[0][0].digest == digest
    assert scores.components[0][3].digest == ""
    assert server.score("quality@1", "a").transform == scoring_pb2.TRANSFORM_WEIGHTED_SUM


def test_a_list_of_rules_tells_its_parts(server: RunningServer) -> None:
    (result,) = server.score("style@1", "damn it, damn it all").results
    assert [(c.name, c.value, c.weight) for c in result.score.components] == [
        ("swearing", 2.0, 1.0),
        ("length", 0.5, 2.0),
    ]
    assert result.score.value == 3.0
    assert server.score("style@1", "damn it, damn it all").results[0] == result  # from the result cache


def test_many_callers_get_the_same_scores(server: RunningServer, tmp_path: Path) -> None:
    server.deploy("quality", make_composite(tmp_path / "quality", part("grammar"), part("sentiment", weight=0.5)))
    expected = values(server.score("quality", *TEXTS))
    with ThreadPoolExecutor(8) as callers:
        answers = callers.map(lambda index: values(server.score("quality", *TEXTS, run=f"r{index % 3}")), range(40))
    assert all(answer == pytest.approx(expected, abs=1e-5) for answer in answers)


def test_an_item_fails_with_any_of_its_parts_and_alone(server: RunningServer, tmp_path: Path) -> None:
    server.deploy("quality", make_composite(tmp_path / "quality", part("sentiment"), part("grammar", weight=0.5)))
    good, bad = server.score("quality", "fine", "too long for BERT" * 15).results
    assert good.HasField("score")
    assert bad.error.reason == errors_pb2.ERROR_REASON_ITEM_TOO_LONG
    assert bad.error.message.startswith("Component 'grammar' (grammar@1): ")


def test_ids_mean_nothing_to_two_tokenizers(server: RunningServer, tmp_path: Path) -> None:
    server.deploy("quality", make_composite(tmp_path / "quality", part("sentiment"), part("grammar")))
    request = scoring_pb2.ScoreRequest(model="quality")
    request.groups.add().completions.add().token_ids.ids.extend([5, 6, 7])
    group = request.groups.add()
    group.prompt.text = "Hi"
    group.completions.add().text = "fine"
    ids, text = server.scoring.Score(request).results
    assert ids.error.reason == errors_pb2.ERROR_REASON_UNSUPPORTED_CONTENT
    assert text.HasField("score")
    assert text.score.value == pytest.approx(values(server.score("quality", "fine"))[0], abs=1e-5)
    server.deploy(
        "twice", make_composite(tmp_path / "twice", part("grammar"), {"name": "again", "version": "grammar@1"})
    )
    request.model = "twice"
    assert server.scoring.Score(request).results[0].HasField("score")


def test_a_composite_loads_its_parts_and_keeps_them(server: RunningServer, tmp_path: Path) -> None:
    register(server, "quality", make_composite(tmp_path / "quality", part("grammar"), part("style")))
    for model in ("grammar", "style"):
        server.models.RemoveLabel(models_pb2.RemoveLabelRequest(model=model, label="stable"))
        unload(server, f"{model}@1")
    load(server, "quality@1")
    assert state_of(server, "grammar@1") == models_pb2.VERSION_STATE_READY
    for force in (False, True):
        status, error = error_of(lambda force=force: unload(server, "grammar@1", force))
        assert (status, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_VERSION_IN_USE)
        assert "the composite quality@1 is made of it" in error.message
    delete = models_pb2.DeleteVersionRequest(model="grammar", version=1)
    changes = server.models.WatchModels(models_pb2.WatchModelsRequest(model="grammar"), timeout=60)
    unload(server, "quality@1")
    # Nobody asked for the parts themselves: they go without being told.
    next(change for change in changes if change.model.versions[0].state == models_pb2.VERSION_STATE_REGISTERED)
    changes.cancel()
    _, error = error_of(lambda: server.models.DeleteVersion(delete))
    assert "is a part of the composite quality@1" in error.message
    server.models.DeleteVersion(models_pb2.DeleteVersionRequest(model="quality", version=1))
    server.models.DeleteVersion(delete)


def test_a_server_that_starts_loads_the_parts_too(tmp_path: Path, folders: dict[str, Path]) -> None:
    with running(tmp_path / "home") as server:
        server.deploy("grammar", folders["grammar"], label=None)
        server.deploy("quality", make_composite(tmp_path / "quality", {"name": "g", "version": "grammar@1"}))
        before = values(server.score("quality", *TEXTS))
        unload(server, "quality@1", force=True)
        unload(server, "grammar@1")
        load(server, "quality@1")
    with running(tmp_path / "home") as server:
        assert values(server.score("quality", *TEXTS)) == pytest.approx(before, abs=1e-6)


def test_golden_scores_go_through_all_parts(server: RunningServer, tmp_path: Path) -> None:
    (raw,) = values(server.score("grammar@1", "fine"))
    parts = (part("grammar"), {"name": "brevity", "rule": BREVITY})
    good = GoldenExample("Hi", "fine", raw + 1.0)
    server.deploy("quality", make_composite(tmp_path / "good", *parts, golden=(good,)))
    bad = make_composite(tmp_path / "bad", parts[0], golden=(GoldenExample("Hi", "fine", raw + 1.0),))
    register(server, "other", bad)
    _, error = error_of(lambda: load(server, "other@1"))
    assert error.reason == errors_pb2.ERROR_REASON_GOLDEN_MISMATCH
    assert state_of(server, "other@1") == models_pb2.VERSION_STATE_FAILED
    _, error = error_of(lambda: server.score("other@1", "a"))
    assert error.reason == errors_pb2.ERROR_REASON_VERSION_NOT_LOADED


def test_golden_scores_of_a_part_in_int8_may_differ_by_what_the_part_is_allowed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running(home) as server:
        server.deploy("m", make_version(tmp_path / "m", 4))
        assert cli.main(["export", "m@1", "--home", str(home), "--quiet", "--int8", "--min-spearman", "0.5"]) == 0
        load(server, "m@2")
        (raw,) = values(server.score("m@2", "fine"))
        catalog, artifacts = open_home(home)
        allowed = read_manifest(artifacts.path(catalog.snapshot().versions["m", 2].digest)).tolerance["int8"]
        catalog.close()
        exact, rounded = {"version": "m@1", "weight": 0.0}, {"name": "m", "version": "m@2", "weight": -2.0}
        for model, off, loads in (("same", 0.0, True), ("near", 1.9 * allowed, True), ("far", 2.2 * allowed, False)):
            parts = ({**exact, "name": model}, rounded)  # golden examples are no part of the digest; a name is
            golden = GoldenExample("Hi", "fine", -2 * raw + off + 1e-4)
            register(server, model, make_composite(tmp_path / model, *parts, golden=(golden,)))
            if loads:
                load(server, f"{model}@1")
                assert values(server.score(f"{model}@1", "fine")) == pytest.approx([-2 * raw], abs=1e-6)
            else:
                _, error = error_of(lambda: load(server, "far@1"))
                assert error.reason == errors_pb2.ERROR_REASON_GOLDEN_MISMATCH
                assert "in int8" in error.message


@pytest.mark.parametrize(
    ("component", "reason", "says"),
    [
        ({"name": "g", "version": "grammar@7"}, "VERSION_NOT_FOUND", "Component 'g'"),
        ({"name": "g", "version": "grammar@gone"}, "LABEL_NOT_FOUND", "gone"),
        ({"name": "g", "version": "grammar@1", "digest": "0" * 64}, "DIGEST_MISMATCH", "was expected"),
        ({"name": "g", "version": "quality@1"}, "UNSUPPORTED_ARTIFACT", "is a composite"),
        ({"name": "g", "version": "grammar@1", "calibrated": True}, "NOT_CALIBRATED", "no calibration"),
        ({"name": "g", "rule": {"type": "astrology"}}, "UNSUPPORTED_ARTIFACT", "astrology"),
        ({"name": "g", "version": "grammar@1", "label_index": 1}, "UNSUPPORTED_ARTIFACT", "--label-index"),
    ],
)
def test_what_cannot_be_a_composite_is_not_registered(
    server: RunningServer, tmp_path: Path, component: dict[str, Any], reason: str, says: str
) -> None:
    register(server, "quality", make_composite(tmp_path / "quality", part("grammar")))
    bad = make_composite(tmp_path / "bad", component)
    _, error = error_of(lambda: register(server, "bad", bad))
    assert error.reason == errors_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")
    assert says in error.message


def test_a_label_is_pinned_when_the_composite_is_registered(
    server: RunningServer, tmp_path: Path, folders: dict[str, Path]
) -> None:
    folder = make_composite(tmp_path / "quality", part("grammar"))
    first = register(server, "quality", folder)
    assert register(server, "quality", folder).version == first.version
    server.deploy("grammar", folders["sentiment"])  # stable moves to grammar@2
    second = register(server, "quality", folder)
    assert (second.version, second.digest == first.digest) == (2, False)
    load(server, "quality@1")
    assert values(server.score("quality@1", "a")) == values(server.score("grammar@1", "a"))
