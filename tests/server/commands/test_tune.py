"""`rm-server tune`: measures real processes, keeps a profile, names the fastest version; no figure is asserted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from tiny_adapters import make_adapter

from rm_server import cli
from rm_server.backends.device import device_kind, num_cores
from rm_server.errors import GoldenMismatch, UnsupportedArtifact
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import add_version, open_home
from rm_server.registry.manifest import GoldenExample, Manifest, write_manifest
from rm_server.training.tune import relatives, tune_version
from rm_server.training.tuning import BATCH_TOKENS

ONE_PROCESS = ("--workers", "1", "--seconds", "5", "--quiet")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Catalog, ArtifactStore]]:
    home = open_home(tmp_path / "home")
    yield home
    home[0].close()


def test_a_profile_is_measured_kept_and_told(
    tmp_path: Path, opened: tuple[Catalog, ArtifactStore], capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    checkpoint = tiny_models.make_checkpoint(tmp_path / "checkpoint", "bert")
    for arguments in (("register", "m", str(checkpoint)), ("export", "m@1")):
        assert cli.main([*arguments, "--home", str(home), "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["tune", "m@1", "--home", str(home), *ONE_PROCESS, "--json", "--comment", "new machine"]) == 0
    told = json.loads(capsys.readouterr().out)
    catalog = opened[0]
    kind = device_kind("cpu")
    assert told["device"] == kind
    tried = [*told["ways"], *told["left_out"]]
    assert {(way["version"], way["precision"]) for way in tried} == {(1, "fp32"), (1, "bf16"), (2, "fp32")}
    assert {(way["workers"], way["threads_per_worker"]) for way in tried} == {(1, num_cores())}
    assert all(min(way["rates"]) > 0 and 1 <= len(way["rates"]) <= 3 for way in told["ways"])
    assert [way["max_batch_tokens"] for way in told["batches"]] in (list(BATCH_TOKENS), []), "or no time was left"
    rates = dict.fromkeys((1, 2), 0.0)
    for way in told["ways"]:
        rates[way["version"]] = max(rates[way["version"]], way["tokens_per_s"])
    assert told["fastest_version"] == max(rates, key=lambda version: rates[version])
    for expected in told["profiles"]:
        profile = catalog.snapshot().profiles[("m", expected["version"]), kind]
        assert {name: getattr(profile, name) for name in expected} == expected
    assert [profile["version"] for profile in told["profiles"]] == [1, 2]
    assert "tune" in [one.name for one in catalog.evaluations("m", 1)]
    changes = [change for change in catalog.history("m") if change.action == "set_serving_profile"]
    assert {(change.version, change.comment) for change in changes} == {(1, "new machine"), (2, "new machine")}

    named = catalog.snapshot().versions["m", 2]
    assert [one.key for one in relatives(catalog, named)] == [("m", 2), ("m", 1)]


def test_a_precision_that_loses_the_golden_scores_is_left_out(
    tmp_path: Path, opened: tuple[Catalog, ArtifactStore]
) -> None:
    catalog, artifacts = opened
    checkpoint = tiny_models.make_checkpoint(tmp_path / "checkpoint", "gpt2")
    manifest = Manifest(
        "sequence_classification",
        max_tokens=64,
        golden=(GoldenExample("Hi", "there", 1e6),),
        tolerance={"fp32": 1e-3, "bf16": 1e7},
    )
    add_version(catalog, artifacts, "m", checkpoint, actor="me", manifest=manifest)
    tuning = tune_version(catalog, artifacts, "m@1", actor="me", seconds=0.1, max_workers=1)
    assert {way.arm.precision for way in tuning.ways} == {"bf16"}
    assert [(arm.precision, "golden scores are up to 1e+06 off" in why) for arm, why in tuning.left_out] == [
        ("fp32", True)
    ]
    assert tuning.profiles[0].precision == "bf16"
    strict = replace(manifest, tolerance={"fp32": 1e-3, "bf16": 1e-3})
    add_version(catalog, artifacts, "strict", checkpoint, actor="me", manifest=strict)
    with pytest.raises(GoldenMismatch, match="strict@1 could be measured in no precision: golden scores"):
        tune_version(catalog, artifacts, "strict@1", actor="me", seconds=0.1, max_workers=1)
    assert list(catalog.snapshot().profiles) == [(("m", 1), device_kind("cpu"))]


def test_an_adapter_is_measured_over_its_base(tmp_path: Path, opened: tuple[Catalog, ArtifactStore]) -> None:
    home = str(tmp_path / "home")
    adapter = make_adapter(tmp_path / "adapter", tiny_models.make_checkpoint(tmp_path / "base", "llama"))
    assert cli.main(["register", "m", str(adapter), "--home", home, "--quiet"]) == 0
    assert cli.main(["tune", "m@1", "--home", home, *ONE_PROCESS]) == 0
    assert opened[0].snapshot().profiles[("m", 1), device_kind("cpu")].tokens_per_s > 0


def test_rules_have_nothing_to_choose(tmp_path: Path, opened: tuple[Catalog, ArtifactStore]) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "rules.json").write_text('{"rules": []}')
    write_manifest(rules, Manifest("rules", transform="rule"))
    add_version(*opened, "m", rules, actor="me")
    with pytest.raises(UnsupportedArtifact, match="nothing to choose"):
        tune_version(*opened, "m@1", actor="me")
