"""`rm-server export`: the ONNX version beside the original, its cost told and filed, nothing left on refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
import torch

from rm_server import cli
from rm_server.backends.interface import ComputeSettings
from rm_server.backends.loading import infer_manifest
from rm_server.backends.onnx import graph
from rm_server.registry.home import add_version, open_home
from rm_server.registry.manifest import read_manifest, write_manifest
from rm_server.registry.records import CalibrationRecord
from rm_server.training.offline_scoring import offline_scorer

Run = Callable[..., tuple[int, str, str]]
TEXTS = [("Hi", " there" * number + "!") for number in range(1, 12)]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what the fixtures' libraries said
        status = cli.main([*map(str, arguments)])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_models.make_checkpoint(tmp_path / "checkpoint", "bert")


@pytest.fixture
def home(tmp_path: Path, checkpoint: Path, run: Run) -> Path:
    """A home with m@1, calibrated."""
    folder = tmp_path / "home"
    assert run("register", "m", checkpoint, "--home", folder, "--quiet", "--max-tokens", 100)[0] == 0
    catalog, _ = open_home(folder)
    catalog.set_calibration("m", 1, CalibrationRecord("c" * 64, 2.0, -1.0), "ann")
    catalog.close()
    return folder


def pairs_file(folder: Path) -> Path:
    random = np.random.default_rng(0)
    words = ["the", "fox", "and", "seven", "geese", "ran", "over", "a", "very", "red", "bridge", "in", "rain"]

    def text() -> str:
        return " ".join(random.choice(words, random.integers(2, 12)))

    rows = [{"prompt": f"Prompt {number // 2}", "chosen": text(), "rejected": text()} for number in range(30)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scores(folder: Path) -> np.ndarray:
    score = offline_scorer(folder, read_manifest(folder), ComputeSettings(threads=1, deterministic=True))
    return np.array([scored.score for scored in score(TEXTS)])


def test_a_version_becomes_an_onnx_version_beside_it(run: Run, home: Path) -> None:
    status, out, _ = run("export", "m@1", "--home", home, "--quiet", "--comment", "for the small machine")
    assert status == 0
    assert out.startswith("m@2 (")
    assert "is m@1 in ONNX." in out
    assert "calibrated as m@1 is" in out
    catalog, artifacts = open_home(home)
    first, second = (catalog.snapshot().versions["m", number] for number in (1, 2))
    assert (second.kind, second.comment, second.max_tokens) == ("onnx", "for the small machine", 100)
    assert second.calibration == first.calibration
    manifest = read_manifest(artifacts.path(second.digest))
    original = read_manifest(artifacts.path(first.digest))
    assert (manifest.golden, manifest.template, manifest.precision) == (original.golden, original.template, "fp32")
    (filed,) = [one for one in catalog.evaluations("m", 2) if one.name == "export"]
    report = json.loads(filed.report_json)
    assert (report["source"], report["source_digest"], report["digest"]) == ("m@1", first.digest, second.digest)
    np.testing.assert_allclose(scores(artifacts.path(second.digest)), scores(artifacts.path(first.digest)), atol=1e-5)
    catalog.close()
    # The same again is the same version.
    status, out, _ = run("export", "m@1", "--home", home, "--quiet", "--json")
    again = json.loads(out)
    assert (status, again["version"], again["created"], again["digest"]) == (0, 2, False, second.digest)


def test_an_export_has_the_golden_examples_of_its_version(run: Run, home: Path, checkpoint: Path) -> None:
    catalog, artifacts = open_home(home)
    first = read_manifest(artifacts.path(catalog.snapshot().versions["m", 1].digest))
    fewer = replace(first, golden=first.golden[:2])
    add_version(catalog, artifacts, "n", checkpoint, actor="ann", manifest=fewer)  # the same content
    assert run("export", "n@1", "--home", home, "--quiet")[0] == 0
    exported = read_manifest(artifacts.path(catalog.snapshot().versions["n", 2].digest))
    assert len(exported.golden) == 2
    catalog.close()


def test_int8_tells_what_it_costs(run: Run, home: Path, tmp_path: Path) -> None:
    data = pairs_file(tmp_path)
    status, out, err = run("export", "m@1", "--home", home, "--quiet", "--int8", "--json", "--data", data)
    assert status == 0, err
    report = json.loads(out)
    catalog, artifacts = open_home(home)
    folders = [artifacts.path(catalog.snapshot().versions["m", number].digest) for number in (1, 2)]
    catalog.close()
    before, after = map(scores, folders)
    assert np.abs(after - before).max() > 1e-4, "int8 that changes nothing is no int8"
    manifest = read_manifest(folders[1])
    assert manifest.precision == "int8"
    change = report["scores"]
    assert manifest.tolerance == {"int8": pytest.approx(1e-3 + 2 * change["max_difference"])}
    golden = read_manifest(folders[0]).golden
    assert manifest.golden == golden, "golden scores go on saying what the original gives"
    assert change["num_texts"] > len(golden)
    assert 0.9 <= change["spearman"] < 1
    accuracy = report["accuracy"]
    assert accuracy["num_pairs"] == 30
    assert accuracy["difference"]["value"] == pytest.approx(accuracy["after"]["value"] - accuracy["before"]["value"])
    assert report["data"]["path"] == "pairs.jsonl"


def test_too_great_a_loss_is_refused_and_leaves_nothing(run: Run, home: Path) -> None:
    status, _, err = run("export", "m@1", "--home", home, "--quiet", "--int8", "--min-spearman", 1)
    assert status == 1
    assert "keep their order too badly" in err
    catalog, artifacts = open_home(home)
    assert list(catalog.snapshot().versions) == [("m", 1)]
    assert len(artifacts.digests()) == 1
    catalog.close()


def test_a_result_that_tells_no_texts_apart_is_refused_and_leaves_nothing(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_all(source: Path, target: Path) -> None:
        model = onnx.load(source)
        (logits,) = (node for node in model.graph.node if "logits" in node.output)
        logits.output[:] = ["lost"]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
        model.graph.node.append(onnx.helper.make_node("Mul", ["lost", "nothing"], ["logits"]))
        onnx.save(model, target)

    monkeypatch.setattr(graph, "quantize_graph", lose_all)
    status, _, err = run("export", checkpoint, "--out", tmp_path / "made", "--quiet", "--int8")
    assert status == 1
    assert "In int8 all of 15 texts get the same score" in err
    assert not (tmp_path / "made").exists()


def test_a_plain_folder_becomes_a_folder(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    out_folder = tmp_path / "made" / "onnx"
    (checkpoint / "split.json").write_text('{"train": ["p"], "held_out": []}')
    status, out, _ = run("export", checkpoint, "--out", out_folder, "--quiet", "--opset", 20)
    assert status == 0
    assert "opset 20" in out
    names = {path.name for path in out_folder.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert names == {"config.json", "model.onnx", "reward_model.json", "split.json", *tokenizer}
    assert len(read_manifest(out_folder).golden) > 3
    status, _, err = run("export", checkpoint, "--out", out_folder, "--quiet")
    assert (status, "is no empty folder" in err) == (1, True)


def test_a_graph_that_is_off_is_refused(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rm_server.backends.onnx import graph as onnx_graph

    forward = onnx_graph._PaddedClassifier.forward

    def wrong(self: Any, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = forward(self, ids, mask, types) * 1.01
        return logits

    monkeypatch.setattr(onnx_graph._PaddedClassifier, "forward", wrong)
    status, _, err = run("export", checkpoint, "--out", tmp_path / "out", "--quiet")
    assert status == 1
    assert "BertForSequenceClassification is not exported: over items of different lengths" in err
    assert not (tmp_path / "out").exists()


def test_what_does_not_export_is_said(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    llama = tiny_models.make_checkpoint(tmp_path / "llama", "llama_dynamic_rope")
    status, _, err = run("export", llama, "--out", tmp_path / "out", "--quiet")
    assert (status, "rope_type 'dynamic' is not exported" in err) == (1, True)
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "reward_model.json").write_text('{"kind": "rules", "transform": "rule"}')
    status, _, err = run("export", rules, "--out", tmp_path / "out", "--quiet")
    assert (status, "kind 'rules' is not exported" in err) == (1, True)
    assert not (tmp_path / "out").exists()
    for arguments in ((), ("--home", tmp_path, "--out", tmp_path / "out")):
        status, _, err = run("export", checkpoint, *arguments)
        assert (status, "Give --home DIR" in err) == (1, True)


def test_a_manifest_in_the_folder_is_kept(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    manifest = infer_manifest(checkpoint, template="Q: {prompt} A: {completion}", max_tokens=77)
    write_manifest(checkpoint, manifest)
    assert run("export", checkpoint, "--out", tmp_path / "out", "--quiet")[0] == 0
    exported = read_manifest(tmp_path / "out")
    assert (exported.template, exported.max_tokens) == (manifest.template, 77)
