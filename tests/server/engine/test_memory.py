"""What a load needs of each bound, what a refusal says, and what the system's files say is free."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from rm_server.backends.footprint import Footprint, footprint, parameters_of
from rm_server.backends.interface import ComputeSettings, SharedMemory
from rm_server.backends.loading import infer_manifest, load_backend
from rm_server.engine.host import LoadReport
from rm_server.engine.machine import available_bytes
from rm_server.engine.memory import MIB, RESERVE_BYTES, Memory, rooms_for
from rm_server.errors import ArtifactUnreadable
from rm_server.registry.manifest import Manifest, Precision

BASE = SharedMemory("base", 100)


def report(own: int, shared: SharedMemory | None = None) -> LoadReport:
    return LoadReport(own, "fp32", np.empty(0), shared)


@pytest.mark.parametrize(
    ("expected", "workers", "there", "stays", "at_most"),
    [
        (Footprint(), 2, (), None, None),
        (Footprint(10, None, 7, 3), 1, (), 10, 17),
        (Footprint(10, None, 3, 7), 2, (), 20, 34),
        (Footprint(10, BASE, 50, 5), 1, (), 110, 160),
        (Footprint(10, BASE, 50, 5), 2, ("base",), 20, 30),
    ],
)
def test_weights_stay_and_the_rest_must_fit_beside_them(
    expected: Footprint, workers: int, there: tuple[str, ...], stays: int | None, at_most: int | None
) -> None:
    rooms = rooms_for(
        expected, workers, there, limit=(1000, 400), machine_bytes=RESERVE_BYTES + 30, device=("cuda:0", 40)
    )
    wanted = [] if stays is None else [(stays, 600), (at_most, 30), (at_most, 40)]
    assert [(room.needed_bytes, room.free_bytes) for room in rooms] == wanted


async def test_what_was_measured_is_believed_and_the_refusal_has_the_figures() -> None:
    async def no_gpu() -> None:
        return None

    memory = Memory(100 * MIB, 2, lambda *_: Footprint(10 * MIB), lambda: None, no_gpu)
    asked = (Path("digest"), Manifest("sequence_classification"), ComputeSettings(), 4096)
    assert await memory.lacking(*asked) is None
    shared = SharedMemory("base", 20 * MIB)
    memory.came(("a", 1), Path("a"), "fp32", [report(5 * MIB, shared), report(5 * MIB, shared)])
    memory.came(("b", 2), Path("digest"), "fp32", [report(8 * MIB, shared), report(8 * MIB, shared)])
    assert memory.by_version() == {("a", 1): 50 * MIB, ("b", 2): 16 * MIB}
    assert memory.by_version() is memory.by_version()  # the state of each version asks for it, again and again
    memory.went(("a", 1))
    assert memory.by_version() == {("b", 2): 56 * MIB}
    assert await memory.lacking(*asked) is None
    memory.came(("c", 1), Path("digest"), "fp32", [report(25 * MIB), report(25 * MIB)])
    room = await memory.lacking(*asked)
    assert room is not None
    assert room.missing_bytes == 56 * MIB
    said = memory.refusal(("d", 4), room).message
    assert "d@4 needs 50.0 MiB in 2 workers, and 0.0 MiB are free of engine.memory_limit_mb (100.0 MiB)." in said
    assert "Loaded are: b@2 56.0 MiB, c@1 50.0 MiB." in said


def test_the_estimate_is_what_a_load_takes(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama", sharded=True)
    manifest = infer_manifest(folder)
    words = tiny_models.VOCAB_SIZE * 32
    one_of_two_layers = (sum(map(parameters_of, folder.glob("*.safetensors"))) - words) // 2
    for settings in (ComputeSettings(), ComputeSettings(precision="bf16", prepack=False)):
        taken = load_backend(folder, manifest, settings).memory_bytes
        expected = footprint(folder, manifest, settings, 4096)
        assert expected.own_bytes == pytest.approx(taken, rel=0.02)
        assert expected.loading_bytes == 2 * 4 * one_of_two_layers
        # 4096 tokens, 6 vectors of 32 and 3 of 48 each.
        assert expected.working_bytes == 4096 * (6 * 32 + 3 * 48) * (4 if settings.precision == "fp32" else 2)
    assert footprint(folder, Manifest("rules"), ComputeSettings(), 4096) == Footprint()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 16)
    with pytest.raises(ArtifactUnreadable, match="is no safetensors file"):
        parameters_of(broken)


@pytest.mark.parametrize(
    ("config", "inner"),
    [
        ({"hidden_size": 8, "intermediate_size": 24}, 24),
        ({"n_embd": 8, "n_inner": 24}, 24),  # GPT-2
        ({"n_embd": 8, "n_inner": None}, 32),
        ({"dim": 8, "hidden_dim": 24}, 24),  # DistilBERT
        ({"d_model": 8, "d_ff": 24}, 24),  # T5
        ({"hidden_size": 99, "text_config": {"hidden_size": 8, "intermediate_size": 24}}, 24),  # Gemma 3
    ],
)
def test_widths_are_found_by_the_names_that_architectures_have_for_them(
    tmp_path: Path, config: dict[str, object], inner: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.onnx").write_bytes(b"\x3a\x08\x0a\x06\x22\x04Relu")  # a graph of one operator: 10 bytes
    found = footprint(tmp_path, Manifest("onnx"), ComputeSettings(), 4096)
    assert found == Footprint(10, None, 10, 4096 * (6 * 8 + 3 * inner) * 4)


@pytest.mark.parametrize(
    ("family", "config", "num_layers"), [("gpt2", {"n_layer": 3}, 3), ("distilbert", {"n_layers": 1}, 1)]
)
def test_a_load_takes_a_layer_more(tmp_path: Path, family: str, config: dict[str, int], num_layers: int) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family, **config)
    num_parameters = parameters_of(folder / "model.safetensors") - tiny_models.VOCAB_SIZE * 32
    found = footprint(folder, infer_manifest(folder), ComputeSettings(precision="bf16"), 4096)
    assert found.loading_bytes == 2 * 4 * (num_parameters // num_layers)


@pytest.mark.parametrize(
    ("config", "precision", "largest_bytes"),
    [
        ({"vocab_size": 9999}, "bf16", 2 * 9999 * 32),  # copied as it is, and never widened
        ({"vocab_size": 9999}, "fp32", 4 * 9999 * 32),
        ({"max_position_embeddings": 9999}, "bf16", 2 * 4 * 9999 * 32),
    ],
)
def test_a_load_takes_the_largest_weight_more(
    tmp_path: Path, config: dict[str, int], precision: Precision, largest_bytes: int
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert", **config)
    found = footprint(folder, infer_manifest(folder), ComputeSettings(precision=precision), 4096)
    assert found.loading_bytes == largest_bytes


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 90 kB\nMemAvailable: 50 kB\n"}, 50 * 1024),
        (
            {
                "proc/meminfo": "MemAvailable: 50 kB\n",
                "proc/self/cgroup": "0::/service/worker\n",
                "groups/service/memory.max": "3000\n",
                "groups/service/memory.current": "2500\n",
                "groups/service/memory.stat": "anon 1\ninactive_file 100\n",
                "groups/service/worker/memory.max": "max\n",
                "groups/service/worker/memory.current": "2500\n",
                "groups/service/worker/memory.stat": "inactive_file 100\n",
            },
            600,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/docker/1\n",
                "groups/memory/memory.limit_in_bytes": "4000",
                "groups/memory/memory.usage_in_bytes": "4500",
                "groups/memory/memory.stat": "total_inactive_file 700",
            },
            200,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 1 kB\n",
                "groups/memory/memory.limit_in_bytes": "9223372036854771712",
                "groups/memory/memory.usage_in_bytes": "4500",
                "groups/memory/memory.stat": "",
            },
            1024,
        ),
    ],
    ids=["unknown", "system", "version 2, the group around", "version 1", "version 1 without a limit"],
)
def test_the_narrowest_bound_of_the_system_counts(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    write(tmp_path, files)
    assert available_bytes(tmp_path / "proc", tmp_path / "groups") == expected
