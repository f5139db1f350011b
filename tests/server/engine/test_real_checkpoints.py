"""The engine over tiny real checkpoints: the scores are transformers' own, and swaps beside it do not change them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import tiny_models
import torch
from fake_versions import outcomes
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_server.backends.items import EncodedItem
from rm_server.backends.loading import infer_manifest
from rm_server.config import EngineSettings
from rm_server.engine.engine import Engine
from rm_server.errors import ConstantOutput, NonFiniteScore, RmError, WeightsMismatch
from rm_server.metrics import Metrics
from rm_server.registry.manifest import Precision

PROMPTS = ["Tell me a story.", "Why?", "One, two, three: what comes next?"]
PAIRS = [(prompt, f"{prompt[::-1]} {n} " * (n % 2 + 1)) for n in range(8) for prompt in PROMPTS]


@asynccontextmanager
async def running_engine(workers: int) -> AsyncIterator[Engine]:
    engine = Engine(EngineSettings(workers=workers, threads_per_worker=1, max_batch_tokens=512), Metrics())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(drain_s=0)


async def load(engine: Engine, folder: Path, number: int = 1, precision: Precision = "fp32") -> None:
    await engine.load(("m", number), folder, infer_manifest(folder), precision)


async def scores_of(engine: Engine, number: int = 1) -> list[float]:
    encoded = await engine.encode(("m", number), PAIRS)
    items = [item for item in encoded if isinstance(item, EncodedItem)]
    assert len(items) == len(PAIRS)
    scores = await outcomes(engine.submit(("m", number), items, use_cache=False))
    return [score for score in scores if isinstance(score, float)]


def own_scores(folder: Path) -> list[float]:
    """One item after the other, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    manifest = infer_manifest(folder)
    scores = []
    for prompt, completion in PAIRS:
        if manifest.template == "pair":
            inputs = dict(tokenizer(prompt, completion, return_tensors="pt"))
        else:
            eos = [tokenizer.eos_token_id] if manifest.append_eos else []
            text = manifest.template.format(prompt=prompt, completion=completion)
            inputs = {"input_ids": torch.tensor([[*tokenizer(text)["input_ids"], *eos]])}
        with torch.no_grad():
            scores.append(model(**inputs).logits[0, 0].item())
    return scores


@pytest.mark.parametrize("family", ["bert", "llama"])
async def test_scores_are_transformers_own(tmp_path: Path, family: str) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    async with running_engine(0) as engine:
        await load(engine, folder)
        assert engine.memory.by_version()["m", 1] > 10_000
        assert await scores_of(engine) == pytest.approx(own_scores(folder), abs=1e-5)


@pytest.mark.parametrize("num_workers", [0, 1], ids=["thread", "process"])
async def test_scores_do_not_change_while_other_versions_come_and_go(tmp_path: Path, num_workers: int) -> None:
    folders = [
        tiny_models.make_checkpoint(tmp_path / str(seed), "llama", seed=seed, dtype="bfloat16" if seed else "float32")
        for seed in range(3)
    ]
    async with running_engine(num_workers) as engine:
        await load(engine, folders[0])
        expected = own_scores(folders[0])
        is_over = False

        async def swap() -> None:
            nonlocal is_over
            for round_number in range(2):
                await asyncio.gather(
                    load(engine, folders[1], 2, "bf16"), load(engine, folders[2], 3, "fp32" if round_number else "bf16")
                )
                assert await scores_of(engine, 3) == pytest.approx(own_scores(folders[2]), abs=0.5)
                await asyncio.gather(engine.unload(("m", 2)), engine.unload(("m", 3)))
            is_over = True

        swapping = asyncio.ensure_future(swap())
        num_rounds = 0
        while not is_over and not swapping.done():
            assert await scores_of(engine) == pytest.approx(expected, abs=1e-5)
            num_rounds += 1
        await swapping
        assert num_rounds >= 3
        assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("harm", "refusal"),
    [("drop the head", WeightsMismatch), ("zero the head", ConstantOutput), ("put a NaN in", NonFiniteScore)],
)
async def test_broken_weights_are_refused_and_the_others_serve_on(
    tmp_path: Path, harm: str, refusal: type[RmError]
) -> None:
    good = tiny_models.make_checkpoint(tmp_path / "good", "llama")
    bad = tiny_models.make_checkpoint(tmp_path / "bad", "llama")
    weights = load_file(bad / "model.safetensors")
    if harm == "drop the head":
        del weights["score.weight"]
    elif harm == "zero the head":
        weights["score.weight"].zero_()
    else:
        weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    async with running_engine(0) as engine:
        await load(engine, good)
        with pytest.raises(refusal):
            await load(engine, bad, 2)
        assert list(engine.loaded) == [("m", 1)]
        assert await scores_of(engine) == pytest.approx(own_scores(good), abs=1e-5)
