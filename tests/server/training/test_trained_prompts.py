"""What a version learnt from is what its training names, and the training of what it is made of."""

from __future__ import annotations

import json
from pathlib import Path

from rm_server.registry.lora import BaseName, write_base_name
from rm_server.training.trained_prompts import trained_groups

OURS, PART, OTHER, BASE = (letter * 64 for letter in "abcd")


def made(artifacts: Path, digest: str, *trained_on: str) -> Path:
    """A version's folder, as far as it matters here."""
    folder = artifacts / digest
    folder.mkdir()
    if trained_on:
        (folder / "split.json").write_text(json.dumps({"train": trained_on, "held_out": ["h"]}))
    return folder


def test_of_a_version(tmp_path: Path) -> None:
    assert trained_groups(made(tmp_path, OURS, "p", "q"), "sequence_classification") == {"p", "q"}
    assert trained_groups(made(tmp_path, OTHER), "onnx") == set()


def test_of_a_composite_and_of_the_base_of_an_adapter_in_it(tmp_path: Path) -> None:
    composite, adapter = made(tmp_path, OURS), made(tmp_path, PART, "p")
    (adapter / "adapter_config.json").write_text("{}")
    write_base_name(adapter, BaseName("base@1", BASE))
    made(tmp_path, BASE, "b")
    made(tmp_path, OTHER, "q", "p")
    parts = [
        {"name": name, "version": f"{name}@1", "digest": digest, "weight": 1.0}
        for name, digest in (("part", PART), ("other", OTHER))
    ]
    (composite / "composite.json").write_text(json.dumps({"components": parts}))
    assert trained_groups(composite, "composite") == {"p", "q", "b"}
    assert trained_groups(adapter, "lora") == {"p", "b"}
