"""Scores of every family are those of transformers' own forward on one item, whatever the batch."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_server.backends.checkpoint import load_model, read_config
from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem, Float64Array
from rm_server.backends.loading import infer_manifest, load_backend, load_encoder
from rm_server.backends.torch.backend import TorchBackend, check_settings, checked_forward, memory_bytes
from rm_server.backends.torch.forward import Forward, PackedForward
from rm_server.backends.torch.self_check import choose_forward
from rm_server.errors import OutOfMemory, UnsupportedArtifact, WeightsMismatch
from rm_server.registry.manifest import Manifest, Precision

MANIFEST = Manifest(kind="sequence_classification", max_tokens=120)
PADDED = ("deberta_v2", "gemma2")
# The head reads all tokens; the model wants as many hidden states out as came in.
WHOLE_LAST_LAYER = ("modernbert_mean", "gpt2")
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 40, 49, 64, 77, 120)
CPU = torch.device("cpu")


def make_items(lengths: Sequence[int], seed: int = 0, *, with_types: bool = False) -> list[EncodedItem]:
    """Random ids (no special tokens) of the lengths given."""
    random = np.random.default_rng(seed)
    return [
        EncodedItem(
            ids=random.integers(5, VOCAB_SIZE, length).astype(np.int32),
            num_tokens=length,
            type_ids=(np.arange(length) > length // 2).astype(np.int32) if with_types else None,
        )
        for length in lengths
    ]


def own_scores(folder: Path, items: Sequence[EncodedItem], label: int = 0) -> Float64Array:
    """transformers' own forward, one item at a time, each with a model that has seen nothing before."""
    scores = []
    for item in items:
        model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(item.ids).long()[None]}
        if item.type_ids is not None:
            inputs["token_type_ids"] = torch.from_numpy(item.type_ids).long()[None]
        with torch.inference_mode():
            scores.append(float(model(**inputs).logits[0, label]))
    return np.array(scores)


def load(folder: Path, manifest: Manifest = MANIFEST, **settings: Any) -> TorchBackend:
    backend = load_backend(folder, manifest, ComputeSettings(**settings))
    assert isinstance(backend, TorchBackend)
    return backend


def random_batches(
    backend: TorchBackend, items: Sequence[EncodedItem], num_batches: int, seed: int = 0
) -> list[tuple[list[int], Float64Array]]:
    random = np.random.default_rng(seed)
    batches = []
    for _ in range(num_batches):
        members = random.permutation(len(items))[: random.integers(1, len(items) + 1)].tolist()
        batches.append((members, backend.score(Batch.of([items[index] for index in members]))))
    return batches


@pytest.mark.parametrize("prepack", [True, False])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_scores_are_transformers_own(tmp_path: Path, family: str, prepack: bool) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family, seed=3)
    backend = load(folder, prepack=prepack)
    assert backend.forward.name == ("padded" if family in PADDED else "packed")
    if isinstance(backend.forward, PackedForward):
        assert backend.forward.reads_only is (family not in WHOLE_LAST_LAYER)
    items = make_items(LENGTHS)
    expected = own_scores(folder, items)
    assert np.ptp(expected) > 0.3, "the families' scores must differ for the comparison to mean something"
    for members, scores in random_batches(backend, items, 8):
        np.testing.assert_allclose(scores, expected[members], atol=1e-5, rtol=0)


def rows_computed(backend: TorchBackend) -> list[int]:
    """Tokens of the forward of one item, for items of several lengths."""
    rows = []
    for item in make_items((1, 31, 32, 33, 120)):
        backend.score(Batch.of([item]))
        assert isinstance(backend.forward, PackedForward)
        assert backend.forward.last is not None
        rows.append(backend.forward.last.layout.num_tokens)
    return rows


def test_prepacked_layers_get_few_numbers_of_rows(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    assert rows_computed(load(folder)) == [8, 32, 32, 40, 120]
    assert rows_computed(load(folder, prepack=False)) == [1, 31, 32, 33, 120]
    assert rows_computed(load(folder, deterministic=True)) == [1, 31, 32, 33, 120]


def test_what_few_tokens_need_is_ready_at_load(tmp_path: Path) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    script = """
import sys
import numpy as np
from pathlib import Path
from threading import Thread
from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.loading import infer_manifest, load_backend

folder = Path(sys.argv[1])
backend = load_backend(folder, infer_manifest(folder), ComputeSettings(threads=1, threads_alone=2))
for is_alone in (False, True):
    print("loaded", flush=True)
    backend.stretch(is_alone)
    for length in (1, 33, 200, 500, 700):
        backend.score(Batch.of([EncodedItem(np.ones(count, np.int32), count) for count in (length, 5)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_models.make_checkpoint(tmp_path, "llama"))],
        env={**os.environ, "ONEDNN_VERBOSE": "profile_create"},
        capture_output=True,
        text=True,
        check=True,
    )
    at_load, busy, alone = (
        [line for line in part.splitlines() if "create:cache_miss" in line] for part in done.stdout.split("loaded")
    )
    assert len(at_load) > 100
    assert busy == []
    assert len(alone) <= 7, "700 tokens are more than are prepared for"


def test_a_backend_computes_with_the_threads_it_is_told_to(tmp_path: Path) -> None:
    backend = load(tiny_models.make_checkpoint(tmp_path, "bert"), threads=1, threads_alone=3)
    batch = Batch.of(make_items(LENGTHS))
    found = {}

    def compute(is_alone: bool) -> None:
        backend.stretch(is_alone)
        found[is_alone] = backend.score(batch), torch.get_num_threads()

    before = torch.get_num_threads()
    for is_alone in (True, False):
        thread = Thread(target=compute, args=(is_alone,))
        thread.start()
        thread.join()
    assert (found[True][1], found[False][1], torch.get_num_threads()) == (3, 1, before)
    np.testing.assert_allclose(found[True][0], found[False][0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("family", "last", "inside"), [("bert", "encoder.layer.1", "output.dense"), ("llama", "layers.1", "mlp")]
)
@pytest.mark.parametrize("prepack", [True, False])
def test_the_last_layer_is_computed_where_it_is_read(
    tmp_path: Path, family: str, last: str, inside: str, prepack: bool
) -> None:
    backend = load(tiny_models.make_checkpoint(tmp_path, family), prepack=prepack)
    seen: list[int] = []
    part = backend.forward.backbone.get_submodule(f"{last}.{inside}")

    form = "plus" if prepack and family == "bert" else "forward"

    def watched(x: torch.Tensor, *others: torch.Tensor) -> Any:
        seen.append(x.shape[1])
        return getattr(type(part), form)(part, x, *others)

    setattr(part, form, watched)
    backend.score(Batch.of(make_items((17, 40, 3))))
    assert seen == [8 if prepack else 3]


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_segments_of_a_pair_are_seen(tmp_path: Path, family: str) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    items = make_items((4, 30, 17), with_types=True)
    plain = own_scores(folder, [replace(item, type_ids=None) for item in items])
    expected = own_scores(folder, items)
    assert np.abs(plain - expected).max() > 0.01
    np.testing.assert_allclose(load(folder).score(Batch.of(items)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["bert", "deberta_v2", "mistral"])
def test_ranks_of_500_items_do_not_depend_on_the_batch(tmp_path: Path, family: str) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    backend = load(folder)
    items = make_items(np.random.default_rng(1).integers(1, 90, 500).tolist())
    alone = np.concatenate([backend.score(Batch.of([item])) for item in items])
    members = np.random.default_rng(2).permutation(500)
    together = np.empty(500)
    for start in range(0, 500, 61):
        part = members[start : start + 61]
        together[part] = backend.score(Batch.of([items[index] for index in part]))
    assert np.abs(together - alone).max() <= 1e-5
    assert np.argsort(together).tolist() == np.argsort(alone).tolist()


def test_pad_ids_within_an_item_are_tokens_like_others(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    backend = load(folder)
    item = make_items((20,))[0]
    ids = np.append(item.ids, np.int32(tiny_models.PAD_ID))
    ended = EncodedItem(ids=ids, num_tokens=21)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    with torch.inference_mode():
        hidden = model.model(torch.from_numpy(ids).long()[None]).last_hidden_state[0, -1]
        expected = float(model.score(hidden))
    scores = backend.score(Batch.of([item, ended]))
    assert scores[1] == pytest.approx(expected, abs=1e-5)
    assert abs(scores[0] - scores[1]) > 0.01


def test_a_chat_that_ends_in_the_pad_token_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(
        tmp_path, "llama", chat_template=tiny_models.CHAT_TEMPLATE, pad_token_id=tiny_models.EOS_ID
    )
    manifest = infer_manifest(folder)
    pairs = [("on line?", "the one"), ("a", "b c"), ("a", f"b {tiny_models.EOS}")]
    encoder = load_encoder(folder, manifest)
    scores = load(folder, manifest).score(Batch.of([encoder.encode(*pair) for pair in pairs]))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    for score, (prompt, completion) in zip(scores, pairs, strict=True):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
        with torch.inference_mode():
            assert score == pytest.approx(float(model(**inputs).logits), abs=1e-5)


def test_sharded_weights_score_alike(tmp_path: Path) -> None:
    whole = tiny_models.make_checkpoint(tmp_path / "whole", "qwen2")
    sharded = tiny_models.make_checkpoint(tmp_path / "sharded", "qwen2", sharded=True)
    batch = Batch.of(make_items(LENGTHS))
    assert load(whole).score(batch).tolist() == load(sharded).score(batch).tolist()


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_the_label_s_logit_is_the_score(tmp_path: Path, family: str) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family, num_labels=3)
    items = make_items((5, 9))
    for label in range(3):
        scores = load(folder, replace(MANIFEST, label_index=label)).score(Batch.of(items))
        np.testing.assert_allclose(scores, own_scores(folder, items, label), atol=1e-5, rtol=0)
    with pytest.raises(WeightsMismatch, match="label_index is 3, and the head has 3 outputs"):
        load(folder, replace(MANIFEST, label_index=3))


def test_sigmoid_is_applied_where_the_manifest_says_so(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    batch = Batch.of(make_items((5, 9)))
    raw = load(folder).score(batch)
    squashed = load(folder, replace(MANIFEST, transform="sigmoid")).score(batch)
    np.testing.assert_allclose(squashed, 1 / (1 + np.exp(-raw)), rtol=1e-12)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("family", ["bert", "modernbert_mean", "deberta_v2", "llama", "gemma3"])
def test_half_precision_is_near(tmp_path: Path, family: str, precision: str) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    batch = Batch.of(make_items(np.random.default_rng(0).integers(2, 100, 40).tolist()))
    exact, backend = load(folder).score(batch), load(folder, precision=precision)
    assert backend.precision == precision
    scores = backend.score(batch)
    assert np.isfinite(scores).all()
    assert np.abs(scores - exact).max() < (0.5 if precision == "bf16" else 0.1) * exact.std()
    assert len(set(scores)) == len(scores), "a head in half precision makes ties"
    assert backend.memory_bytes < 0.75 * load(folder).memory_bytes


@pytest.mark.parametrize("family", ["roberta", "deberta_v2", "gpt2", "qwen2"])
def test_a_narrow_version_is_checked_in_fp32_and_never_wide(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    batch = Batch.of(make_items(LENGTHS))
    config, settings = read_config(folder), ComputeSettings(precision="bf16")
    wide = checked_forward(folder, load_model(folder, config), MANIFEST.max_tokens, settings)
    in_fp32 = choose_forward(load_model(folder, config, dtype=torch.bfloat16).float(), CPU, batch)
    expected = in_fp32.logits(batch)
    seen = []

    def chosen(model: Any, device: torch.device, check: Batch) -> Forward:
        forward = choose_forward(model, device, check)
        seen.append((sum(parameter.nbytes for parameter in model.parameters()), forward.logits(batch)))
        return forward

    monkeypatch.setattr("rm_server.backends.torch.backend.choose_forward", chosen)
    backend = load(folder, precision="bf16")
    [(num_bytes, logits)] = seen
    assert num_bytes < 0.55 * sum(weight.nbytes for weight in tiny_models.make_model(family).parameters())
    assert torch.equal(logits, expected)
    # As if it had been read in fp32 and cast after the check.
    np.testing.assert_array_equal(backend.score(batch), wide.logits(batch)[:, 0].double().numpy())
    assert (backend.forward.name, backend.memory_bytes) == (wide.name, memory_bytes(wide))


def saved_in(folder: Path, family: str, dtype: torch.dtype) -> Path:
    """A checkpoint whose weights, the head's too, are of this type."""
    tiny_models.make_checkpoint(folder, family)
    tiny_models.make_model(family).to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["bert", "deberta_v2", "gpt2", "qwen2", "gemma2"])
def test_weights_that_keep_their_file_s_type_score_as_in_fp32(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = saved_in(tmp_path, family, dtype)
    batch = Batch.of(make_items(LENGTHS))
    wide = load(folder, deterministic=True, prepack=False)
    kept = load(folder, deterministic=True, keeps_file_type=True)
    np.testing.assert_array_equal(kept.score(batch), wide.score(batch))
    assert (kept.precision, kept.forward.name) == ("fp32", wide.forward.name)
    assert kept.memory_bytes < 0.6 * wide.memory_bytes


Weights = dict[str, torch.Tensor]
EXPERTS = {
    **{"first_k_dense_replace": 1, "moe_intermediate_size": 16, "n_shared_experts": 1},
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
}


def in_fp32(weights: Weights, *names: str) -> Weights:
    """With numbers that no narrower type would hold."""
    return weights | {name: weights[name].float() * 1.0001 for name in names}


@pytest.mark.parametrize(
    ("family", "config", "changed", "at_most"),
    [
        ("llama", {}, lambda weights: in_fp32(weights, "score.weight"), 0.6),
        ("llama", {}, lambda weights: in_fp32(weights, "model.norm.weight"), 0.6),
        ("llama", {}, lambda weights: weights | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}, 0.6),
        ("bert", {}, lambda weights: weights | {"bert.embeddings.position_ids": torch.arange(128)[None]}, 0.6),
        ("gpt2", {}, lambda weights: weights | {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8).bool()}, 0.6),
        ("gpt2", {}, lambda weights: {name.removeprefix("transformer."): weights[name] for name in weights}, 0.6),
        ("qwen2", {}, lambda weights: {n: w.half() if "proj" in n else w for n, w in weights.items()}, 0.6),
        (
            "bert",
            {},
            lambda weights: {
                name.replace("LayerNorm.weight", "LayerNorm.gamma"): weight
                for name, weight in in_fp32(weights, "bert.embeddings.LayerNorm.weight").items()
            },
            0.6,
        ),
        (
            "deepseek_v3",
            EXPERTS,
            lambda weights: in_fp32(weights, "model.layers.1.mlp.gate.e_score_correction_bias"),
            0.6,
        ),
        ("deepseek_v3", EXPERTS, lambda weights: in_fp32(weights, "model.layers.1.mlp.experts.2.up_proj.weight"), 0.9),
    ],
    ids=[
        *("head", "norm", "frequencies", "positions", "mask", "without a prefix", "two narrow types", "older names"),
        *("experts", "one of the experts"),
    ],
)
def test_each_weight_keeps_its_own_type(
    tmp_path: Path, family: str, config: dict[str, Any], changed: Callable[[Weights], Weights], at_most: float
) -> None:
    tiny_models.make_checkpoint(tmp_path, family, **config)
    tiny_models.make_model(family, **config).to(torch.bfloat16).save_pretrained(tmp_path)
    weights = changed(load_file(tmp_path / "model.safetensors"))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    batch = Batch.of(make_items(LENGTHS))
    wide = load(tmp_path, deterministic=True, prepack=False)
    kept = load(tmp_path, deterministic=True, keeps_file_type=True)
    np.testing.assert_array_equal(kept.score(batch), wide.score(batch))
    assert kept.memory_bytes < at_most * wide.memory_bytes


def test_code_that_goes_by_its_weights_type_is_checked_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    expected = load(folder, precision="bf16").score(Batch.of(make_items(LENGTHS)))

    def forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
        inner = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
        return mlp.down_proj(inner.to(next(mlp.parameters(), inner).dtype))

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", forward)
    backend = load(folder, precision="bf16")
    assert backend.forward.name == "packed"
    np.testing.assert_array_equal(backend.score(Batch.of(make_items(LENGTHS))), expected)


def test_positions_keep_their_precision(tmp_path: Path) -> None:
    backend = load(tiny_models.make_checkpoint(tmp_path, "llama"), precision="bf16")
    types = {name: buffer.dtype for name, buffer in backend.forward.backbone.named_buffers()}
    assert types["rotary_emb.inv_freq"] == torch.float32
    assert backend.forward.backbone.embed_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["roberta", "mistral", "deberta_v2"])
def test_deterministic_scores_are_bit_identical(tmp_path: Path, family: str) -> None:
    backend = load(tiny_models.make_checkpoint(tmp_path, family), deterministic=True)
    items = make_items(LENGTHS)
    alone = np.concatenate([backend.score(Batch.of([item])) for item in items])
    for members, scores in random_batches(backend, items, 67):
        assert scores.tolist() == alone[members].tolist()


def test_an_item_does_not_fail_for_its_neighbour(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    backend = load(folder)
    poisoned = 7
    with torch.no_grad():
        backend.forward.backbone.embeddings.word_embeddings.weight[poisoned] = float("nan")
    items = make_items((37, 21, 33, 19))
    for item in items:
        item.ids[item.ids == poisoned] = 8
    items[1].ids[3] = poisoned
    scores = backend.score(Batch.of(items))
    assert np.isfinite(scores).tolist() == [True, False, True, True]
    np.testing.assert_allclose(scores[[0, 2, 3]], own_scores(folder, [items[0], *items[2:]]), atol=1e-5, rtol=0)


def test_two_models_in_one_process_do_not_meet(tmp_path: Path) -> None:
    families = ("bert", "llama")
    folders = [tiny_models.make_checkpoint(tmp_path / family, family) for family in families]
    backends = [load(folder) for folder in folders]
    batches = [Batch.of(make_items((5 + index, 60 - index, 17), seed=index)) for index in range(20)]
    alone = [[backend.score(batch).tolist() for batch in batches] for backend in backends]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda backend: [backend.score(batch).tolist() for batch in batches], backends))
    assert together == alone


def test_no_items_no_scores(tmp_path: Path) -> None:
    backend = load(tiny_models.make_checkpoint(tmp_path, "bert"))
    assert backend.score(Batch.of([])).shape == (0,)


def test_large_batches_are_cut_into_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(tiny_models.make_checkpoint(tmp_path, "bert"))
    batch = Batch.of(make_items([50] * 12))
    expected = backend.score(batch)
    monkeypatch.setattr("rm_server.backends.torch.forward.MAX_FORWARD_TOKENS", 120)
    assert [len(part) for part in backend.forward.group(range(12), batch)] == [2] * 6
    np.testing.assert_allclose(backend.score(batch), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_full_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    backend = load(tiny_models.make_checkpoint(tmp_path, "bert"))

    def fail(batch: Batch) -> torch.Tensor:
        raise error

    monkeypatch.setattr(backend.forward, "logits", fail)
    with pytest.raises(OutOfMemory, match="2 items with 14 tokens"):
        backend.score(Batch.of(make_items((5, 9))))


def test_positions_beyond_the_table_are_refused_at_load(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "roberta")
    assert load(folder, replace(MANIFEST, max_tokens=129))
    with pytest.raises(UnsupportedArtifact, match="max_tokens is 130, and the model has positions for 129"):
        load(folder, replace(MANIFEST, max_tokens=130))


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    with pytest.raises(UnsupportedArtifact, match="'abacus' is no device"):
        load(folder, device="abacus")


def test_a_gpu_beyond_those_that_are_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    for num_gpus, seen in ((0, "no"), (1, "1")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda num=num_gpus: num)
        with pytest.raises(UnsupportedArtifact, match=rf"'cuda:1' is asked for, and torch .* sees {seen} CUDA device"):
            load(folder, device="cuda:1")
    assert not caplog.records, "before anything is said of loading it there"


def test_a_gpu_whose_driver_is_too_old_is_refused_in_torchs_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")

    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12080).")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(UnsupportedArtifact, match=r"torch .* cannot use it: The NVIDIA driver .* is too old"):
        load(folder, device="cuda:0")


def test_a_model_that_fails_on_ordinary_tokens_is_refused_in_its_own_words(tmp_path: Path) -> None:
    tiny = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    folder = tiny_models.make_checkpoint(tmp_path, "gpt2", model_type="t5", **tiny)
    with pytest.raises(UnsupportedArtifact, match=r"T5ForSequenceClassification cannot be served: .*<eos> token"):
        load(folder)


def test_attention_that_depends_on_the_items_before_is_refused(tmp_path: Path) -> None:
    bigbird = {"model_type": "big_bird", "block_size": 8, "num_random_blocks": 1}
    folder = tiny_models.make_checkpoint(tmp_path / "sparse", "bert", **bigbird)
    with pytest.raises(UnsupportedArtifact, match=r'"attention_type": "original_full" in its config\.json'):
        load(folder)
    items = make_items((90, 3, 70), with_types=True)
    folder = tiny_models.make_checkpoint(tmp_path / "full", "bert", **bigbird, attention_type="original_full")
    np.testing.assert_allclose(load(folder).score(Batch.of(items)), own_scores(folder, items), atol=1e-4)


def test_memory_counts_every_weight(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    weights = sum(weight.nbytes for weight in tiny_models.make_model("bert").state_dict().values())
    for prepack in (True, False):
        assert weights <= load(folder, prepack=prepack).memory_bytes < 1.05 * weights


def test_a_model_that_disagrees_when_packed_is_served_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    monkeypatch.setattr("rm_server.backends.torch.forward.position_offset", lambda backbone: 1)
    with caplog.at_level(logging.WARNING):
        backend = load(folder)
    assert backend.forward.name == "padded"
    assert "is not served packed: its logits are up to" in caplog.text
    items = make_items(LENGTHS)
    np.testing.assert_allclose(backend.score(Batch.of(items)), own_scores(folder, items), atol=1e-5, rtol=0)


def test_a_model_that_disagrees_when_padded_is_served_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "gpt2")
    monkeypatch.setattr("rm_server.backends.torch.pooling.pooled_position", lambda model: "mean")
    backend = load(folder)
    assert backend.forward.name == "one by one"
    items = make_items(LENGTHS)
    np.testing.assert_allclose(backend.score(Batch.of(items)), own_scores(folder, items), atol=1e-5, rtol=0)


def test_a_window_longer_than_the_check_must_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "mistral", sliding_window=200)
    manifest = replace(MANIFEST, max_tokens=60)
    assert load(folder, manifest).forward.name == "packed"
    original = PackedForward.forward

    def forgets_a_window(self: PackedForward, batch: Batch) -> torch.Tensor:
        logits = original(self, batch)
        assert self.last is not None
        self.last.num_windowed -= 1
        return logits

    monkeypatch.setattr(PackedForward, "forward", forgets_a_window)
    assert load(folder, manifest).forward.name == "padded"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "precision", "warns"), [("cuda:1", "fp32", 1), ("cuda", "bf16", 0), ("cpu", "fp32", 0)]
)
def test_fp32_on_a_gpu_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, device: str, precision: Precision, warns: int
) -> None:
    check_settings(tmp_path, ComputeSettings(device=device, precision=precision))
    assert caplog.text.count("one by one. bf16 and fp16 have such kernels") == warns


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("device", "keeps"), [("cuda:1", False), ("cpu", True)])
def test_on_a_gpu_attention_is_not_planned_for_each_length(tmp_path: Path, device: str, keeps: bool) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    check_settings(tmp_path, ComputeSettings(device=device, precision="bf16"))
    assert torch.backends.cuda.cudnn_sdp_enabled() is keeps
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_weights_go_with_the_last_reference(tmp_path: Path, family: str) -> None:
    """A worker that unloads does not look for cycles: that would hold up what it computes."""
    folder = tiny_models.make_checkpoint(tmp_path, family)
    gc.collect()
    gc.disable()
    try:
        before = _num_weights()
        backend = load_backend(folder, MANIFEST, ComputeSettings(threads=1))
        backend.score(Batch.of(make_items([3, 5])))
        assert _num_weights() > before
        del backend
        assert _num_weights() <= before
    finally:
        gc.enable()


def _num_weights() -> int:
    plain = (torch.Tensor, torch.nn.Parameter)  # torch keeps tensors without data of its own
    return sum(type(thing) in plain and thing.numel() > 64 for thing in gc.get_objects())
