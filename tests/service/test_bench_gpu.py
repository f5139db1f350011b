"""The benchmark of a GPU, as far as it goes without one: its arithmetic, its refusal, and its way through on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel

from bench import models, results
from bench.gpu import arms, measure
from bench.gpu.arithmetic import DecoderShape, forward_flops, matmul_flops, shape_of
from bench.measurement import Bench
from bench.workload import Item

ROOT = Path(__file__).parent.parent.parent


def test_products_are_counted_as_a_multiplication_and_an_addition_each() -> None:
    assert matmul_flops(2, 3, 5) == 60


def test_a_forward_is_counted_by_hand() -> None:
    # Queries and output 4 × 4 each, keys and values 4 × 2 each, three matrices 4 × 6: 120 weights.
    shape = DecoderShape(num_layers=2, hidden=4, intermediate=6, num_heads=2, num_key_heads=1, head_dim=2)
    assert shape.weights_per_layer == 120
    # One token: 240 in the matrices and, in each of 2 heads of 2, a product with itself, twice: 16.
    assert forward_flops(shape, [1]) == 2 * (240 + 16)
    # Three tokens see 1 + 2 + 3; two items do not see each other.
    assert forward_flops(shape, [3]) == 2 * (3 * 240 + 6 * 16)
    assert forward_flops(shape, [1, 3]) == forward_flops(shape, [1]) + forward_flops(shape, [3])


def test_a_forward_is_counted_as_torch_counts_it_but_for_what_causality_hides() -> None:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    model, length = LlamaModel(config).eval(), 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(length)[None], use_cache=False)
    shape = shape_of(config)
    hidden_by_causality = shape.num_layers * 4 * shape.num_heads * shape.head_dim * (length * (length - 1) // 2)
    # Of the layers: some releases of transformers make the angles of positions by a product, too, outside of them.
    in_layers = sum(
        sum(of_operators.values())
        for module, of_operators in counter.get_flop_counts().items()
        if re.fullmatch(r"LlamaModel\.layers\.\d+", module)
    )
    assert in_layers == forward_flops(shape, [length]) + hidden_by_causality


def test_the_rate_of_products_rests_on_as_many_as_fit_into_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the first one takes, or one that the machine was disturbed at."""
    product, done = torch.mm, 0
    slow = {0: 5.0, 2: 1.0}  # by how many were done before

    def counted(*arguments: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += 1
        return product(*arguments, out=out)

    def seconds_of(work: Callable[[], object], device: str) -> float:
        before = done
        work()
        return slow.get(before, 0.01 * (done - before))

    monkeypatch.setattr(torch, "mm", counted)
    monkeypatch.setattr(arms, "seconds_of", seconds_of)
    assert arms.matmul_flops_per_s("cpu", 8, seconds=1.0) == pytest.approx(2 * 8**3 / 0.01)
    assert done == 1 + 3 + 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_device_nothing_is_measured_or_written(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "bench.gpu", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Skipped: torch")
    assert "sees no CUDA device, so nothing was measured" in done.stdout
    assert not out.exists()


def test_all_is_measured_on_a_cpu_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    score, padded = arms.Transformers.score, []

    def noted(self: arms.Transformers, items: Sequence[Item]) -> list[float]:
        padded.append(len(items))
        return score(self, items)

    monkeypatch.setattr(arms.Transformers, "score", noted)
    sizes = measure.Sizes(
        matmul=64, item_tokens=48, num_items=64, callers=2, items_per_call=4, batch_tokens=256, single_calls=3
    )
    bench = Bench(quick=True)
    monkeypatch.setattr(measure, "PADDED_ITEMS", 8)
    measure.run(bench, models.decoder(tiny=True), "cpu", sizes)
    assert padded[:2] == [8, 64], "a padded batch as those to come, before any is measured"
    assert set(results.GPU_TARGETS) <= set(bench.figures)
    assert all(figure > 0 for figure in bench.figures.values())
    rows = {(row["what"], row.get("lengths")) for row in bench.rows}
    assert {
        ("service", "equal"),
        ("service", "mixed"),
        ("service", "groups"),
        ("transformers, padded", "mixed"),
    } <= rows
    assert {("matrix products", None), ("one item: bare forward", None), ("one item: service", None)} <= rows
