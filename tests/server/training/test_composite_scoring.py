"""A composite registered into a home: golden scores of its own, made of those of its parts, and served as recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
from rm_api.v1 import models_pb2
from running_server import make_rules_version, running
from tiny_adapters import make_adapter

from rm_server.cli import main
from rm_server.errors import GoldenMismatch, InvalidRequest, UnsupportedArtifact
from rm_server.registry.home import Home, open_home
from rm_server.registry.manifest import GoldenExample, Manifest, read_manifest, write_manifest
from rm_server.training.registration import Reading, register_folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """grammar@1 reads a classifier's label 1; brevity@1 is a rule."""
    classifier = tiny_models.make_checkpoint(tmp_path / "grammar", "gpt2", num_labels=2, seed=3)
    rules = make_rules_version(tmp_path / "brevity", {"type": "length", "max": 3, "soft": 4})
    register_folder(tmp_path / "home", "grammar", str(classifier), actor="me", reading=Reading(label_index="LABEL_1"))
    register_folder(tmp_path / "home", "brevity", str(rules), actor="me")
    return tmp_path / "home"


def write(folder: Path, **weights: float) -> str:
    folder.mkdir()
    components = [{"name": name, "version": f"{name}@1", "weight": weight} for name, weight in weights.items()]
    (folder / "composite.json").write_text(json.dumps({"components": components}))
    return str(folder)


def test_golden_scores_are_recorded_and_served(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "quality", grammar=2.0, brevity=0.5)
    assert main(["register", "quality", source, "--home", str(home), "--quiet"]) == 0
    assert main(["models", "--home", str(home)]) == 0
    assert "composite of brevity@1, grammar@1" in capsys.readouterr().out
    catalog, artifacts = open_home(home)
    with running(home) as server:
        for model in ("grammar", "brevity", "quality"):
            catalog.set_wanted(model, 1, True, "me")
            catalog.set_label(model, "stable", 1, "me")
        golden = read_manifest(artifacts.path(catalog.snapshot().versions["quality", 1].digest)).golden
        assert len(golden) == 16
        server.models.LoadVersion(models_pb2.LoadVersionRequest(selector="quality@1"))
        for example in golden:
            assert isinstance(example.completion, str)
            assert isinstance(example.prompt, str)
            grammar, brevity, quality = (
                server.score(f"{model}@1", example.completion, prompt=example.prompt).results[0].score.value
                for model in ("grammar", "brevity", "quality")
            )
            assert quality == pytest.approx(2 * grammar + 0.5 * brevity, abs=1e-6)
            assert quality == pytest.approx(example.score, abs=1e-4)
    catalog.close()


def test_golden_scores_that_it_does_not_give_are_refused(tmp_path: Path, home: Path) -> None:
    source = write(tmp_path / "quality", brevity=1.0)
    golden = (GoldenExample("Hi", "a b", 0.5),)
    write_manifest(Path(source), Manifest("composite", transform="weighted_sum", golden=golden))
    with pytest.raises(GoldenMismatch):
        register_folder(home, "quality", source, actor="me")


def test_a_calibrated_part_is_pinned_as_it_is_now(tmp_path: Path, home: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"prompt": "Hi", "completion": "word " * n}) + "\n" for n in range(1, 9)))
    rules = make_rules_version(tmp_path / "other", {"type": "length", "max": 2, "soft": 9})
    calibrated = register_folder(home, "brevity", str(rules), actor="me", reference_data=data).record
    component = {"name": "brevity", "version": "brevity@2", "calibrated": True}
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "composite.json").write_text(json.dumps({"components": [component]}))
    done = register_folder(home, "quality", str(tmp_path / "quality"), actor="me")
    catalog, artifacts = open_home(home)
    (pinned,) = json.loads((artifacts.path(done.record.digest) / "composite.json").read_text())["components"]
    catalog.close()
    assert calibrated.calibration is not None
    assert pinned["calibration"] == {
        "digest": calibrated.calibration.digest,
        "gain": calibrated.calibration.gain,
        "bias": calibrated.calibration.bias,
    }
    of_short = {example.completion: example.score for example in done.manifest.golden}
    assert max(of_short.values()) == pytest.approx(calibrated.calibration.gain + calibrated.calibration.bias)


def test_a_composite_is_no_part(tmp_path: Path, home: Path) -> None:
    register_folder(home, "quality", write(tmp_path / "quality", brevity=1.0), actor="me")
    with pytest.raises(UnsupportedArtifact, match="quality@1 is a composite"):
        register_folder(home, "more", write(tmp_path / "more", quality=1.0), actor="me")


def test_it_is_evaluated_and_matched_with_all_of_its_parts(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quality").mkdir()
    components = [
        {"name": "brevity", "version": "brevity@1", "weight": 2.0},
        {"name": "very short", "rule": {"type": "length", "max": 1, "soft": 1}},
    ]
    (tmp_path / "quality" / "composite.json").write_text(json.dumps({"components": components}))
    register_folder(home, "quality", str(tmp_path / "quality"), actor="me")
    pairs = tmp_path / "pairs.jsonl"
    rows = [("a", "a b c d e"), ("a b", "a b c d e f")]
    pairs.write_text("".join(json.dumps({"prompt": "Hi", "chosen": c, "rejected": r}) + "\n" for c, r in rows))
    capsys.readouterr()

    in_home = ("--home", str(home), "--model", "quality@1")
    assert main(["evaluate", *in_home, "--data", str(pairs), "--quiet", "--json", "-"]) == 0
    # Of brevity: 1 and 1 - 2 / 4, then 1 and 1 - 3 / 4, twice each; of the other rule: 1 and 0, then 0 and 0.
    assert sorted(json.loads(capsys.readouterr().out)["margins"].values()) == pytest.approx([1.5, 2.0])

    other = make_rules_version(tmp_path / "other", {"type": "length", "max": 1, "soft": 9})
    record = register_folder(home, "other", str(other), actor="me", reference_data=pairs, match="quality@1").record
    assert record.calibration is not None
    assert record.calibration.gain * (1 + 8 / 9 + 5 / 9 + 4 / 9) / 4 + record.calibration.bias == pytest.approx(6.5 / 4)


def test_what_a_part_cannot_score_is_told_with_the_part(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"name": "asked", "rule": {"type": "wanted_words", "words": ["fox"], "of": "prompt"}}
    (tmp_path / "quality").mkdir()
    components = [{"name": "g", "version": "grammar@1"}, asked]
    (tmp_path / "quality" / "composite.json").write_text(json.dumps({"components": components}))
    texts = tmp_path / "texts.jsonl"
    for row, says in (
        ({"prompt": "Hi", "completion": "a" * 300}, "Component 'g' (grammar@1): The item has 303 tokens"),
        ({"completion": "Hi"}, "The composite's own rules: The item has no prompt, and asked looks at the prompt."),
    ):
        rows = [row, *({"prompt": "Hi", "completion": completion} for completion in ("good", "bad"))]
        texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        caplog.clear()
        register_folder(home, "quality", str(tmp_path / "quality"), actor="me", reference_data=texts)
        assert f"1 of 3 reference texts have no score, the first: {says}" in caplog.text


def test_ids_are_refused_where_they_mean_something_else_to_each_part(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    other = tiny_models.make_checkpoint(tmp_path / "other", "gpt2", seed=4, adds_special_tokens=True)
    register_folder(home, "other", str(other), actor="me")
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": [9, number], "chosen": [10, 11], "rejected": [12]} for number in range(8, 12)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    apart, alike = write(tmp_path / "apart", grammar=1.0, other=0.5), write(tmp_path / "alike", grammar=2.0)
    with pytest.raises(InvalidRequest, match="cannot read any of them"):
        register_folder(home, "apart", apart, actor="me", golden_data=pairs)
    register_folder(home, "apart", apart, actor="me")
    assert len(register_folder(home, "alike", alike, actor="me", golden_data=pairs).manifest.golden) == 8
    with pairs.open("a") as file:
        file.write('{"prompt": "Hi", "chosen": "good", "rejected": "bad"}\n')
    caplog.clear()
    for model, num_pairs in (("apart", 1), ("grammar", 5), ("alike", 5)):
        in_home = ("--home", str(home), "--model", f"{model}@1")
        assert main(["evaluate", *in_home, "--data", str(pairs), "--quiet", "--json", "-"]) == 0
        assert len(json.loads(capsys.readouterr().out)["margins"]) == num_pairs
        assert ("have different tokenizers" in caplog.text) == (model == "apart")
        caplog.clear()


def test_an_adapter_s_base_comes_from_the_shared_store_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_models.make_checkpoint(tmp_path / "base", "qwen2", seed=3))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "Hi", "chosen": "good", "rejected": "bad"}\n')
    (tmp_path / "store").mkdir()

    def machine(name: str) -> Home:
        return Home(tmp_path / name, f"sqlite:///{tmp_path}/catalog.db", f"file://{tmp_path}/store")

    register_folder(machine("first"), "adapter", str(adapter), actor="me")
    register_folder(machine("first"), "sum", write(tmp_path / "sum", adapter=2.0), actor="me")
    margins = []
    for model in ("adapter", "sum"):
        home = machine(f"evaluates {model}")
        places = ("--home", str(home.path), "--catalog", home.catalog, "--artifacts", home.artifacts)
        assert main(["evaluate", *places, "--model", f"{model}@1", "--data", str(pairs), "--quiet", "--json", "-"]) == 0
        margins += json.loads(capsys.readouterr().out)["margins"].values()
    assert margins[1] == pytest.approx(2 * margins[0], abs=1e-5)
    rules = make_rules_version(tmp_path / "rules", {"type": "length", "max": 3, "unit": "characters", "soft": 4})
    done = register_folder(machine("matches"), "rules", str(rules), actor="me", reference_data=pairs, match="adapter@1")
    assert done.calibration is not None
    other = write(tmp_path / "other", adapter=3.0)
    assert register_folder(machine("registers"), "sum", other, actor="me").record.version == 2


def test_a_folder_alone_has_not_what_it_is_made_of(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = register_folder(home, "quality", write(tmp_path / "quality", brevity=1.0), actor="me")
    catalog, artifacts = open_home(home)
    folder = artifacts.path(done.record.digest)
    catalog.close()
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Hi", "chosen": "a", "rejected": "a b c d e"}\n')
    assert main(["evaluate", "--version-dir", str(folder), "--data", str(tmp_path / "pairs.jsonl")]) == 1
    assert "made of are in a home" in capsys.readouterr().err
