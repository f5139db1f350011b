"""A folder becomes a version: what is computed, what is filed, and what is refused without a trace."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_server.backends.items import Batch
from rm_server.backends.loading import infer_manifest
from rm_server.backends.torch.backend import TorchBackend
from rm_server.errors import (
    ArtifactUnreadable,
    ConstantOutput,
    GoldenMismatch,
    InvalidRequest,
    InvalidSelector,
    UnsupportedArtifact,
    WeightsMismatch,
)
from rm_server.registry.digest import digest_of
from rm_server.registry.home import open_home
from rm_server.registry.manifest import Manifest, read_manifest, write_manifest
from rm_server.registry.records import CalibrationRecord
from rm_server.training.data_files import BadData
from rm_server.training.offline_scoring import offline_scorer
from rm_server.training.reference_texts import read_texts
from rm_server.training.registration import Reading, Registration, register_folder

Register = Callable[..., Registration]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def register(home: Path) -> Register:
    def register(source: Path | str, model: str = "m", **options: Any) -> Registration:
        return register_folder(home, model, str(source), actor="ann", **options)

    return register


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "checkpoint", family: str = "qwen2", **options: Any) -> Path:
        return tiny_models.make_checkpoint(tmp_path / name, family, **options)

    return make


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Forty short texts."""
    rng = random.Random(1)
    rows = [
        {"prompt": f"Question {index}? ", "completion": "".join(rng.choices("abcde fgh", k=rng.randint(1, 60)))}
        for index in range(40)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stored(home: Path, registration: Registration) -> tuple[Path, Manifest]:
    catalog, artifacts = open_home(home)
    catalog.close()
    folder = artifacts.path(registration.record.digest)
    return folder, read_manifest(folder)


def noting(score: Callable[[TorchBackend, Batch], Any], scored: list[TorchBackend]) -> Any:
    def score_and_note(backend: TorchBackend, batch: Batch) -> Any:
        scored.append(backend)
        return score(backend, batch)

    return score_and_note


def is_untouched(home: Path) -> bool:
    catalog, artifacts = open_home(home)
    catalog.close()
    return catalog.revision() == 0 and artifacts.digests() == ()


def test_a_plain_folder_becomes_a_version(home: Path, register: Register, checkpoint: Callable[..., Path]) -> None:
    source = checkpoint()
    before = sorted(path.name for path in source.iterdir())
    result = register(source, comment="the first")
    assert result.created
    assert (result.record.key, result.record.kind, result.record.created_by) == (
        ("m", 1),
        "sequence_classification",
        "ann",
    )
    assert result.record.max_tokens == 256
    assert result.record.comment == "the first"
    inferred = infer_manifest(source)
    assert result.record.digest == digest_of(source, inferred)
    assert result.manifest.score_deciding() == inferred.score_deciding()
    folder, manifest = stored(home, result)
    assert manifest == result.manifest
    assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert sorted(path.name for path in source.iterdir()) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_golden_scores_are_those_of_transformers(
    register: Register,
    checkpoint: Callable[..., Path],
    family: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One text at a time, in fp32, whose memory weights in a narrow file do not take."""
    source = checkpoint(family=family)
    tiny_models.make_model(family).to(dtype).save_pretrained(source)
    scored = []
    monkeypatch.setattr(TorchBackend, "score", noting(TorchBackend.score, scored))
    golden = register(source).manifest.golden
    size = (source / "model.safetensors").stat().st_size
    assert {backend.memory_bytes < 1.3 * size for backend in scored} == {True}
    assert 10 <= len(golden) <= 16  # some of our texts are too long for so small a model
    model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    end = "" if family == "bert" else tiny_models.EOS
    for example in golden:
        ids = tokenizer(f"{example.prompt}{example.completion}{end}", return_tensors="pt")
        with torch.no_grad():
            assert model(**ids).logits[0, 0].item() == pytest.approx(example.score, abs=1e-5)


def test_the_same_content_again_is_the_same_version(register: Register, checkpoint: Callable[..., Path]) -> None:
    source = checkpoint()
    first, second = register(source), register(source)
    assert (second.record, second.created) == (first.record, False)
    other = register(checkpoint("other", seed=1))
    assert (other.record.version, other.created) == (2, True)


def test_another_reading_is_another_version(register: Register, checkpoint: Callable[..., Path]) -> None:
    source = checkpoint()
    results = [
        register(source),
        register(source, reading=Reading(template="Q: {prompt}\nA: {completion}")),
        register(source, reading=Reading(max_tokens=100)),
        register(source, reading=Reading(truncation="keep_end")),
        register(source, reading=Reading(append_eos=False)),
    ]
    assert [result.record.version for result in results] == [1, 2, 3, 4, 5]
    assert results[2].record.max_tokens == 100


def test_a_classifier_s_label_is_chosen_by_index_or_name(register: Register, checkpoint: Callable[..., Path]) -> None:
    names = {0: "bad", 1: "good"}
    source = checkpoint(num_labels=2, id2label=names, label2id={name: index for index, name in names.items()})
    with pytest.raises(UnsupportedArtifact, match=r"\(0 bad, 1 good\): register it with --label-index"):
        register(source)
    by_name, by_index = (
        register(source, reading=Reading(label_index="good")),
        register(source, reading=Reading(label_index=1)),
    )
    assert (by_name.manifest.label_index, by_name.label) == (1, "1 good")
    assert register(checkpoint("scalar")).label == ""
    assert (by_index.record, by_index.created) == (by_name.record, False)


@pytest.mark.parametrize(
    ("kind", "reading", "says"),
    [
        (
            "rules",
            Reading(template="pair", label_index="good", max_tokens=9),
            "--template, --label-index: a version of",
        ),
        ("rules", Reading(append_eos=False), "--append-eos: a version of rules has neither"),
        ("composite", Reading(truncation="keep_end", max_tokens=9), "--max-tokens, --truncation: each version"),
    ],
)
def test_a_reading_that_would_be_passed_over_is_refused(
    home: Path, register: Register, tmp_path: Path, kind: str, reading: Reading, says: str
) -> None:
    rule = {"type": "length", "max": 3, "soft": 90}
    content = {"rules": [rule]} if kind == "rules" else {"components": [{"name": "short", "rule": rule}]}
    (tmp_path / f"{kind}.json").write_text(json.dumps(content))
    with pytest.raises(InvalidRequest, match=says):
        register(tmp_path, reading=reading)
    catalog, _ = open_home(home)
    assert not catalog.snapshot().versions
    if kind == "rules":
        limited = register(tmp_path, reading=Reading(max_tokens=9, truncation="keep_start")).manifest
        assert (limited.max_tokens, limited.truncation) == (9, "keep_start")


def test_a_template_without_a_place_for_prompts_is_told(
    register: Register, checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    register(checkpoint(), reading=Reading(template="Q: {prompt} A: {completion}"))
    assert "Prompts will not be read" not in caplog.text
    register(checkpoint("other"), reading=Reading(template="A: {completion}"))
    assert "Prompts will not be read" in caplog.text


def test_golden_texts_may_be_given(register: Register, checkpoint: Callable[..., Path], texts: Path) -> None:
    golden = register(checkpoint(), golden_data=texts).manifest.golden
    assert len(golden) == 16
    assert {(example.prompt, example.completion) for example in golden} <= set(read_texts(texts))


def test_golden_texts_that_cannot_be_read_are_refused(
    home: Path, register: Register, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "x" * 1000}) + "\n")
    with pytest.raises(InvalidRequest, match="cannot read any of them"):
        register(checkpoint(), golden_data=path)
    assert is_untouched(home)


# --- folders that have a manifest ---


@pytest.fixture
def version(register: Register, checkpoint: Callable[..., Path]) -> Path:
    """A folder in a version's layout, golden examples included, as an export would be."""
    source = checkpoint("version")
    write_manifest(source, register(source, model="elsewhere").manifest)
    return source


def test_a_folder_s_own_manifest_and_golden_examples_are_kept(register: Register, version: Path) -> None:
    result = register(version)
    assert result.manifest == read_manifest(version)
    assert len(result.manifest.golden) > 10


def test_a_folder_that_does_not_get_its_golden_scores_is_refused(
    register: Register, version: Path, checkpoint: Callable[..., Path], texts: Path
) -> None:
    other = checkpoint("other", seed=1)
    (version / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(GoldenMismatch, match="Golden example 0 of the folder should have"):
        register(version)
    assert register(version, golden_data=texts).created


def test_a_plain_folder_leaves_a_known_version_its_golden_examples(
    register: Register, checkpoint: Callable[..., Path], texts: Path
) -> None:
    folder = checkpoint()
    chosen = register(folder, golden_data=texts).manifest.golden
    again = register(folder)
    assert not again.created
    assert again.manifest.golden == chosen
    assert register(folder, "other").manifest.golden != chosen


def test_golden_scores_of_another_reading_are_recorded_anew(register: Register, version: Path) -> None:
    old = read_manifest(version).golden
    new = register(version, reading=Reading(template="{completion}")).manifest.golden
    assert {example.completion for example in old} & {example.completion for example in new}
    assert {example.score for example in old}.isdisjoint(example.score for example in new)


# --- calibration ---


def scores_of(folder: Path, manifest: Manifest, texts: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([scored.score for scored in offline_scorer(folder, manifest)(read_texts(texts))])


def test_scores_are_standardised_on_a_reference(
    home: Path, register: Register, checkpoint: Callable[..., Path], texts: Path
) -> None:
    source = checkpoint()
    result = register(source, reference_data=texts)
    assert result.calibration is not None
    calibration = result.record.calibration
    assert calibration is not None
    scores = calibration.gain * scores_of(source, result.manifest, texts) + calibration.bias
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std() == pytest.approx(1, abs=1e-5)
    assert (result.calibration.method, result.calibration.num_texts) == ("standardise", 40)
    catalog, _ = open_home(home)
    assert catalog.snapshot().versions["m", 1] == result.record
    assert catalog.history("m")[0].comment.startswith("texts.jsonl, SHA-256 ")
    catalog.close()


def test_a_new_version_arrives_on_the_scale_of_another(
    register: Register, checkpoint: Callable[..., Path], texts: Path, home: Path
) -> None:
    old, new = checkpoint("old"), checkpoint("new", seed=1)
    first = register(old)
    catalog, _ = open_home(home)
    catalog.set_calibration("m", 1, CalibrationRecord("a" * 64, 2.0, 7.0), "ann")
    catalog.set_label("m", "stable", 1, "ann")
    catalog.close()
    second = register(new, reference_data=texts, match="m@stable")
    calibration = second.record.calibration
    assert calibration is not None
    scores = calibration.gain * scores_of(new, second.manifest, texts) + calibration.bias
    targets = 2.0 * scores_of(old, first.manifest, texts) + 7.0
    assert scores.mean() == pytest.approx(targets.mean(), rel=1e-5)
    assert scores.std() == pytest.approx(targets.std(), rel=1e-5)
    assert second.calibration is not None
    assert second.calibration.source.endswith("scale of m@1")


def test_texts_without_a_score_take_no_part(
    register: Register, checkpoint: Callable[..., Path], texts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with texts.open("a") as file:
        file.write(json.dumps({"text": "x" * 1000}) + "\n")
    result = register(checkpoint(), reference_data=texts)
    assert result.calibration is not None
    assert result.calibration.num_texts == 40
    assert "1 of 41 reference texts have no score" in caplog.text


def test_a_scale_needs_texts_and_a_version(
    home: Path, register: Register, checkpoint: Callable[..., Path], texts: Path
) -> None:
    source = checkpoint()
    with pytest.raises(InvalidRequest, match="give reference data"):
        register(source, match="m@1")
    with pytest.raises(InvalidSelector):
        register(source, reference_data=texts, match="m")
    assert is_untouched(home)


# --- evaluations ---


def test_a_report_is_filed_under_the_name_of_its_data(
    home: Path, register: Register, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint()
    report = {
        "digest": digest_of(source, infer_manifest(source)),
        "data": {"path": "held_out.jsonl.gz"},
        "accuracy": 0.75,
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "plain.json").write_text("{}")
    result = register(source, evaluations=[tmp_path / "report.json", tmp_path / "plain.json"])
    assert result.evaluations == ("held_out", "plain")
    catalog, _ = open_home(home)
    filed = {record.name: json.loads(record.report_json) for record in catalog.evaluations("m", 1)}
    catalog.close()
    assert filed == {"held_out": report, "plain": {}}


def test_a_report_of_another_version_is_refused(
    home: Path, register: Register, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"digest": "a" * 64}))
    with pytest.raises(InvalidRequest, match=r"report\.json evaluates the digest aaaa.* Evaluate it again"):
        register(checkpoint(), evaluations=[path])
    assert is_untouched(home)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_what_is_no_report_is_refused(
    home: Path, register: Register, checkpoint: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InvalidRequest, match="evaluation"):
        register(checkpoint(), evaluations=[tmp_path / "report.json"])
    with pytest.raises(InvalidRequest, match="cannot be read"):
        register(tmp_path / "checkpoint", evaluations=[tmp_path / "missing.json"])
    assert is_untouched(home)


def test_two_reports_cannot_have_one_name(register: Register, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("{}")
    with pytest.raises(InvalidRequest, match="Two of the evaluations are of 'report'"):
        register(checkpoint(), evaluations=[path, path])


def test_training_s_own_report_is_filed_where_it_fits(
    register: Register, checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    source = checkpoint()
    report = {"digest": digest_of(source, infer_manifest(source)), "data": {"path": "pairs.jsonl"}}
    (source / "evaluation.json").write_text(json.dumps(report))
    assert register(source).evaluations == ("pairs",)
    assert "is not filed" not in caplog.text
    assert register(source, reading=Reading(max_tokens=99)).evaluations == ()
    assert "evaluation.json is not filed with the version: it is of another content, or of another" in caplog.text
    (source / "evaluation.json").write_text(json.dumps(report | {"digest": ""}))
    assert register(source, reading=Reading(max_tokens=98)).evaluations == ()
    assert "evaluation.json is not filed with the version: it names no digest" in caplog.text


def test_a_split_that_no_evaluation_could_read_is_refused(
    home: Path, register: Register, checkpoint: Callable[..., Path]
) -> None:
    source = checkpoint()
    (source / "split.json").write_text('{"test": []}')
    with pytest.raises(BadData, match=r"split\.json lacks the list held_out and train"):
        register(source)
    assert is_untouched(home)


# --- refusals ---


def test_a_checkpoint_without_a_head_is_refused(
    home: Path, register: Register, checkpoint: Callable[..., Path]
) -> None:
    from safetensors.torch import load_file, save_file

    source = checkpoint()
    weights = load_file(source / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsMismatch, match="score"):
        register(source)
    assert is_untouched(home)


def test_a_head_of_zeros_is_refused(home: Path, register: Register, checkpoint: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    source = checkpoint()
    weights = load_file(source / "model.safetensors")
    weights["score.weight"].zero_()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConstantOutput, match="gives 0 for each"):
        register(source)
    assert is_untouched(home)


def test_pickled_weights_are_refused(home: Path, register: Register, checkpoint: Callable[..., Path]) -> None:
    source = checkpoint()
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises((UnsupportedArtifact, ArtifactUnreadable), match=r"pytorch_model\.bin|safetensors"):
        register(source)
    assert is_untouched(home)


def test_a_bad_name_costs_no_computation(register: Register) -> None:
    with pytest.raises(InvalidRequest, match="cannot name a model"):
        register("nowhere", model="a@b")


def test_from_the_hub(
    home: Path, register: Register, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    # The cache names a snapshot's folder by its commit.
    snapshot = checkpoint().rename(tmp_path / "0123abc")

    def snapshot_download(repo: str, *, revision: str, **_: Any) -> str:
        assert (repo, revision) == ("org/name", "abc")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    result = register("hf://org/name@abc")
    assert result.record.comment == "from hf://org/name@0123abc"
    assert stored(home, result)[1] == result.manifest
    assert list((home / "artifacts" / ".incoming").iterdir()) == []
