"""Adapters over a shared base against peft's own forward, and who shares what."""

from __future__ import annotations

import gc
import json
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import make_adapter, peft_scores

from rm_server.backends.footprint import footprint
from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.loading import infer_manifest, load_backend, load_encoder
from rm_server.backends.torch import lora
from rm_server.backends.torch.lora import LoraBackend
from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact, WeightsMismatch
from rm_server.registry.layout import ADAPTER_WEIGHTS
from rm_server.registry.manifest import Manifest

ITEMS = [[40, 41, 42], [50] * 7, [60, 61, 62, 63, 64, 65, 66, 67], [44, 99, 100, 101, 102, 103] * 4, [7]]
MANIFEST = Manifest("lora", max_tokens=64)


def batch(items: list[list[int]] = ITEMS) -> Batch:
    return Batch.of([EncodedItem(ids=np.array(ids, np.int32), num_tokens=len(ids)) for ids in items])


def load(folder: Path, **settings: Any) -> LoraBackend:
    backend = load_backend(folder, MANIFEST, ComputeSettings(**settings))
    assert isinstance(backend, LoraBackend)
    return backend


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"self_attn.v_proj": 32}},
        {"target_modules": ["q_proj", "down_proj"]},
    ],
    ids=["all linear layers", "rank-stabilised", "patterns", "two layers"],
)
def test_every_form_scores_as_peft_does(tmp_path: Path, config: dict[str, Any]) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    folder = make_adapter(tmp_path / "adapter", base, **config)
    expected = peft_scores(folder, base, ITEMS)
    assert load(folder).score(batch()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("prepack", [True, False])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "gpt2", "qwen3", "deberta_v2"])
def test_every_family_scores_as_peft_does(tmp_path: Path, family: str, prepack: bool) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", family)
    folder = make_adapter(tmp_path / "adapter", base)
    expected = peft_scores(folder, base, ITEMS)
    assert np.ptp(expected) > 0.1
    assert load(folder, prepack=prepack).score(batch()) == pytest.approx(expected, abs=1e-5)


def test_half_the_bits_score_nearly_the_same(tmp_path: Path) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    folder = make_adapter(tmp_path / "adapter", base)
    full, half = (load(folder, precision=precision).score(batch()) for precision in ("fp32", "bf16"))
    assert half == pytest.approx(full, abs=0.05 * float(np.ptp(full)))


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen3", "deberta_v2"])
def test_a_narrow_base_that_keeps_its_file_s_type_scores_as_in_fp32(tmp_path: Path, family: str) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", family)
    folder = make_adapter(tmp_path / "adapter", base)
    tiny_models.make_model(family).to(torch.bfloat16).save_pretrained(folder / "base")
    wide = load(folder, deterministic=True, prepack=False)
    kept = load(folder, deterministic=True, keeps_file_type=True)
    np.testing.assert_array_equal(kept.score(batch()), wide.score(batch()))
    assert kept.shared_memory.num_bytes < 0.6 * wide.shared_memory.num_bytes
    assert kept.memory_bytes == wide.memory_bytes


def test_adapters_share_one_base_and_do_not_touch_each_other(tmp_path: Path) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    first, second = (make_adapter(tmp_path / f"a{seed}", base, seed=seed, copies_base=False) for seed in (1, 2))
    for folder in (first, second):
        (folder / "base").symlink_to(base)
    expected = [peft_scores(folder, base, ITEMS) for folder in (first, second)]
    one = load(first)
    before = one.score(batch())
    two = load(second)
    assert one.forward is two.forward
    assert one.shared_memory == two.shared_memory
    assert two.memory_bytes < one.shared_memory.num_bytes / 3
    assert one.score(batch()).tolist() == before.tolist()
    assert two.score(batch()) == pytest.approx(expected[1], abs=1e-5)
    layers = [module for module in one.forward.backbone.modules() if isinstance(module, lora.LoraLinear)]
    assert layers
    assert all(len(layer.deltas) == 2 for layer in layers)
    del two
    gc.collect()
    assert all(len(layer.deltas) == 1 for layer in layers)
    assert one.score(batch()) == pytest.approx(expected[0], abs=1e-5)
    del one, layers
    gc.collect()
    assert not lora._bases


def test_bases_that_are_loaded_apart_are_counted_apart(tmp_path: Path) -> None:
    """With a head of its own an adapter replaces a module of its base; without, it wants the base's."""
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    own_head, no_head = adapters_of(tmp_path, base, 2)
    weights = {name: weight for name, weight in load_file(no_head / ADAPTER_WEIGHTS).items() if "lora_" in name}
    save_file(weights, no_head / ADAPTER_WEIGHTS)
    backends = [load(own_head), load(no_head)]
    assert backends[0].forward is not backends[1].forward
    expected = [footprint(folder, MANIFEST, ComputeSettings(), 4096).shared for folder in (own_head, no_head)]
    names = [shared.name for shared in expected if shared is not None]
    assert names == [backend.shared_memory.name for backend in backends]
    assert len(set(names)) == 2


def adapters_of(tmp_path: Path, base: Path, number: int, **config: Any) -> list[Path]:
    folders = []
    for seed in range(1, number + 1):
        folder = make_adapter(tmp_path / f"adapter{seed}", base, seed=seed, copies_base=False, **config)
        (folder / "base").symlink_to(base)
        folders.append(folder)
    return folders


# Families with heads that read the first, the last or the mean state; weights as layers and the other way round.
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert_mean", "gpt2", "llama", "llama_dynamic_rope"])
def test_one_batch_of_several_adapters_scores_as_each_alone(tmp_path: Path, family: str) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", family)
    folders = adapters_of(tmp_path, base, 3)
    backends = [load(folder) for folder in folders]
    assert {backend.mixes_with for backend in backends} != {""}
    assert len({backend.mixes_with for backend in backends}) == 1
    # Neighbours of different adapters begin alike, and so do some of the same.
    prompt = list(range(40, 76))
    texts = [[ITEMS[0], [*prompt, 7]], [[*prompt, 8, 9], [*prompt, 10], ITEMS[2]], [[*prompt, 8, 9]]]
    expected = [peft_scores(folder, base, own) for folder, own in zip(folders, texts, strict=True)]
    alone = [backend.score(batch(own)).tolist() for backend, own in zip(backends, texts, strict=True)]
    together = Batch.of(
        [EncodedItem(ids=np.array(ids, np.int32), num_tokens=len(ids)) for own in texts for ids in own],
        [place for place, own in enumerate(texts) for _ in own],
    )
    mixed = backends[0].score_mixed(backends, together)
    assert mixed == pytest.approx(list(chain(*expected)), abs=1e-5)
    assert mixed == pytest.approx(list(chain(*alone)), abs=1e-5)
    assert len({round(score, 4) for score in mixed}) == len(mixed)
    # What a batch of several leaves behind does not touch the next one.
    assert backends[1].score(batch(texts[1])).tolist() == alone[1]


def test_each_adapter_of_a_batch_keeps_its_label_and_transform(tmp_path: Path) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert", num_labels=3)
    manifests = (Manifest("lora", label_index=2, max_tokens=64), Manifest("lora", transform="sigmoid", max_tokens=64))
    folders = adapters_of(tmp_path, base, 2, num_labels=3)
    first, second = (
        load_backend(folder, manifest, ComputeSettings()) for folder, manifest in zip(folders, manifests, strict=True)
    )
    assert isinstance(first, LoraBackend)
    together = Batch.of(
        [EncodedItem(ids=np.array(ids, np.int32), num_tokens=len(ids)) for ids in ITEMS], [0, 0, 1, 1, 1]
    )
    expected = [*first.score(batch(ITEMS[:2])), *second.score(batch(ITEMS[2:]))]
    assert first.score_mixed([first, second], together) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("family", "settings"), [("deberta_v2", {}), ("llama", {"deterministic": True})])
def test_what_cannot_be_kept_apart_shares_no_batch(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", family)
    assert load(make_adapter(tmp_path / "adapter", base), **settings).mixes_with == ""


def test_a_layer_that_sees_chosen_tokens_shares_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An expert's layer, say: which rows it gets is not to be told from their number."""
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    forward = lora.LoraLinear.forward

    def of_some_tokens(self: lora.LoraLinear, x: Any) -> Any:
        return torch.cat([forward(self, x[..., :2, :]), forward(self, x[..., 2:, :])], dim=-2)

    folder = make_adapter(tmp_path / "adapter", base)
    assert load(folder).mixes_with
    monkeypatch.setattr(lora.LoraLinear, "forward", of_some_tokens)
    with caplog.at_level("INFO"):
        assert load(folder).mixes_with == ""
    assert "share no batch: a layer sees 2 rows" in caplog.text


def test_adapters_in_two_threads_do_not_mix(tmp_path: Path) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama_dynamic_rope")
    folders = [make_adapter(tmp_path / f"a{seed}", base, seed=seed, copies_base=False) for seed in (1, 2)]
    for folder in folders:
        (folder / "base").symlink_to(base)
    backends = [load(folder) for folder in folders]
    alone = [backend.score(batch()).tolist() for backend in backends]
    assert alone[0] != alone[1]
    seen: list[list[list[float]]] = [[], []]
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait()
        for _ in range(20):
            seen[index].append(backends[index].score(batch()).tolist())

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(scores == alone[index] for index in (0, 1) for scores in seen[index])


def test_a_language_model_is_base_enough(tmp_path: Path) -> None:
    """A head comes with the adapter; what the base has in its place does not matter."""
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    folder = make_adapter(tmp_path / "adapter", base)
    expected = peft_scores(folder, base, ITEMS)
    weights = load_file(folder / "base" / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("score.weight").repeat(3, 1)
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    assert load(folder).score(batch()) == pytest.approx(expected, abs=1e-5)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    gc.collect()
    with pytest.raises(WeightsMismatch, match=r"missing: model\.layers\.0\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_folder_as_peft_leaves_it_is_understood(tmp_path: Path) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama", num_labels=2)
    folder = make_adapter(tmp_path / "adapter", base)
    manifest = infer_manifest(folder)
    assert (manifest.kind, manifest.max_tokens, manifest.append_eos) == ("lora", 256, True)
    item = load_encoder(folder, manifest).encode("the", " end")
    assert item.ids[-1] == tiny_models.EOS_ID


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [3]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make_adapter(tmp_path / "adapter", tiny_models.make_checkpoint(tmp_path / "base", "llama"))
    change_config(folder, **changes)
    with pytest.raises(UnsupportedArtifact, match=rf"{next(iter(changes))}=.*merge_and_unload"):
        load(folder)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    other = tiny_models.make_checkpoint(tmp_path / "other", "llama", intermediate_size=40)
    folder = make_adapter(tmp_path / "adapter", base, copies_base=False)
    with pytest.raises(ArtifactUnreadable, match=r"adapter without its base.*base\.json"):
        load(folder)
    (folder / "base").symlink_to(other)
    with pytest.raises(WeightsMismatch, match=r"mlp\.\w+ with \d+ inputs and \d+ outputs.*belongs to another base"):
        load(folder)
    (folder / "base").unlink()
    (folder / "base").symlink_to(tiny_models.make_checkpoint(tmp_path / "bert", "bert"))
    with pytest.raises(WeightsMismatch, match="fit no head of the base"):
        load(folder)


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", tiny_models.make_checkpoint(tmp_path / "base", "llama"))
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_A" in name)
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(WeightsMismatch, match=r"lora_A and lora_B of .* do not fit together"):
        load(folder)
    save_file({**weights, "base_model.model.model.norm.weight": weights[name].flatten()[:32].clone()}, path)
    with pytest.raises(UnsupportedArtifact, match=r"replaces model\.norm\.weight, inside of the backbone"):
        load(folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactUnreadable, match="cannot be read"):
        load(folder)
