"""A composite's spec: what it says is what is computed, and what makes no sense is refused with what would."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rm_server.backends.composite import CompositeEncoder, VersionPart, read_composite
from rm_server.backends.loading import infer_manifest, load_encoder
from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact, UnsupportedContent
from rm_server.registry.manifest import Manifest
from rm_server.registry.records import CalibrationRecord

D = "d" * 64
PART = {"name": "a", "version": "m@1", "digest": D}
LENGTH = {"type": "length", "max": 3}


def write(folder: Path, *components: Any) -> Path:
    (folder / "composite.json").write_text(json.dumps({"components": components}))
    return folder


def test_values_and_their_sum(tmp_path: Path) -> None:
    calibration = {"digest": D, "gain": 2.0, "bias": 1.0}
    composite = read_composite(
        write(
            tmp_path,
            {"name": "brevity", "rule": LENGTH, "weight": 3},
            {**PART, "gain": 10, "bias": -1, "clip": [-5, 5], "weight": 0.5},
            {**PART, "name": "calibrated", "calibrated": True, "calibration": calibration},
        )
    )
    assert list(composite.versions) == [("m", 1)]
    assert [rule.name for rule in composite.rules.rules] == ["brevity"]
    calibrated = composite.parts[2]
    assert isinstance(calibrated, VersionPart)
    assert calibrated.calibration == CalibrationRecord(D, 2.0, 1.0)
    values = composite.values({("m", 1): 4.0}, [0.25])
    assert values == [0.25, 5.0, 9.0]
    assert composite.total(values) == 3 * 0.25 + 0.5 * 5 + 9
    assert composite.parts[1].scale.clip == (-5.0, 5.0)
    assert composite.parts[0].scale.clip == (-math.inf, math.inf)


def test_the_slope_is_what_a_change_of_the_raw_score_comes_to(tmp_path: Path) -> None:
    part = {**PART, "weight": -0.5, "gain": 10}
    calibration = {"digest": D, "gain": 3.0, "bias": 1.0}
    composite = read_composite(
        write(tmp_path, part, {**part, "name": "b", "calibrated": True, "calibration": calibration})
    )
    assert [part.slope for part in composite.parts if isinstance(part, VersionPart)] == [5.0, 15.0]


@pytest.mark.parametrize(
    ("component", "says"),
    [
        ({"version": "m@1"}, "name must be a text"),
        ({**PART, "name": ""}, "name must be a text"),
        ({**PART, "name": 5}, "name must be a text"),
        ({"name": "a"}, "either `version` or `rule`"),
        ({**PART, "rule": LENGTH}, "either `version` or `rule`"),
        ({**PART, "wieght": 1}, "Did you mean 'weight'"),
        ({**PART, "weight": "much"}, "weight must be a finite number"),
        ({**PART, "clip": [1, 0]}, "low must not be above high"),
        ({**PART, "label_index": 1}, "--label-index"),
        ({**PART, "digest": "abc"}, "64 lower-case"),
        ({**PART, "digest": 5}, "64 lower-case"),
        ({**PART, "version": "@1"}, "must be pinned"),
        ({**PART, "version": "m@stable"}, "must be pinned"),
        ({"name": "a", "version": "m@1"}, "must be pinned"),
        ({**PART, "calibrated": True}, "must be pinned"),
        ({**PART, "calibrated": "yes"}, "true or false"),
        ({**PART, "calibration": {"digest": D, "gain": 1, "bias": 0}}, "`calibrated` is not true"),
        ({**PART, "calibrated": True, "calibration": {"digest": D, "gain": 0, "bias": 0}}, "must not be 0"),
        ({**PART, "calibrated": True, "calibration": {"gain": 1}}, "needs digest, gain and bias"),
        ({**PART, "calibrated": True, "calibration": {"digest": "d", "gain": 1, "bias": 0}}, "needs digest, gain"),
        ({**PART, "calibrated": True, "calibration": 5}, "needs digest, gain and bias"),
        ({"name": "a", "rule": "length"}, "rule is no JSON object"),
        ({"name": "a", "rule": {**LENGTH, "weight": 2}}, "weight belongs to the component"),
        ({"name": "a", "rule": {"type": "length", "maximum": 3}}, "key 'maximum' is not known"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, component: Any, says: str) -> None:
    with pytest.raises(UnsupportedArtifact, match=says):
        read_composite(write(tmp_path, component))


def test_lists_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match=r"has no composite\.json"):
        read_composite(tmp_path)
    with pytest.raises(UnsupportedArtifact, match="at least one"):
        read_composite(write(tmp_path))
    with pytest.raises(UnsupportedArtifact, match="'a' is used twice"):
        read_composite(write(tmp_path, PART, PART))
    ids = {"name": "b", "rule": {"type": "distinct_n", "unit": "tokens"}}
    with pytest.raises(UnsupportedArtifact, match="not at both"):
        read_composite(write(tmp_path, {"name": "a", "rule": LENGTH}, ids))
    (tmp_path / "composite.json").write_text('{"components": [], "more": 1}')
    with pytest.raises(UnsupportedArtifact, match="must be"):
        read_composite(tmp_path)


def test_its_own_encoder_reads_for_its_own_rules(tmp_path: Path) -> None:
    manifest = infer_manifest(write(tmp_path, {"name": "a", "rule": LENGTH}, {**PART, "name": "b"}))
    assert manifest == Manifest("composite", transform="weighted_sum")
    encoder = load_encoder(tmp_path, manifest)
    assert isinstance(encoder, CompositeEncoder)
    assert encoder.encode("Hi", "there").text == encoder.explain("Hi", "there").texts == ("Hi", "there")
    without = load_encoder(write(tmp_path, PART), manifest)
    assert isinstance(without, CompositeEncoder)
    for ask in (without.encode, without.explain):
        with pytest.raises(UnsupportedContent, match="no rules of its own"):
            ask("Hi", "there")
    with pytest.raises(UnsupportedArtifact, match="transform is weighted_sum"):
        load_encoder(tmp_path, Manifest("composite"))
