"""Tiny random checkpoints of every family, written as a user would have them: config, safetensors, fast tokenizer.

Weights are drawn larger than a fresh model's, so that a wrong position, window or neighbour shows in the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

PAD, EOS, BOS, CLS, SEP = "<pad>", "<eos>", "<bos>", "<cls>", "<sep>"
SPECIAL_TOKENS = (PAD, EOS, BOS, CLS, SEP)
PAD_ID, EOS_ID, BOS_ID, CLS_ID, SEP_ID = range(len(SPECIAL_TOKENS))
_MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("o", "n"), ("Ġ", "a"), ("Ġa", "n"))
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256 + len(_MERGES)
"""Rows of the embedding: every byte is a token, so that any text can be encoded; a few merges."""

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

_ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "max_position_embeddings": 256}

# What each family needs beside vocabulary, special tokens and the number of labels.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "bert": {"model_type": "bert", **_ENCODER, "max_position_embeddings": 128},
    "roberta": {"model_type": "roberta", **_ENCODER, "max_position_embeddings": 130, "type_vocab_size": 1},
    "distilbert": {
        "model_type": "distilbert",
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 128,
    },
    "electra": {"model_type": "electra", **_ENCODER, "embedding_size": 24, "max_position_embeddings": 128},
    # Every third layer sees everything, the others 8 tokens to each side.
    "modernbert": {
        "model_type": "modernbert",
        **_ENCODER,
        "num_hidden_layers": 4,
        "local_attention": 16,
        "max_position_embeddings": 256,
        "cls_token_id": CLS_ID,
        "sep_token_id": SEP_ID,
        "classifier_pooling": "cls",
    },
    "modernbert_mean": {
        "model_type": "modernbert",
        **_ENCODER,
        "num_hidden_layers": 4,
        "local_attention": 16,
        "max_position_embeddings": 256,
        "cls_token_id": CLS_ID,
        "sep_token_id": SEP_ID,
        "classifier_pooling": "mean",
    },
    "deberta_v2": {
        "model_type": "deberta-v2",
        **_ENCODER,
        "max_position_embeddings": 128,
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "llama": {"model_type": "llama", **_DECODER},
    # Its frequencies change with the length of the text beyond 48 tokens.
    "llama_dynamic_rope": {
        "model_type": "llama",
        **_DECODER,
        "max_position_embeddings": 48,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    },
    "phi3_longrope": {
        "model_type": "phi3",
        **_DECODER,
        "original_max_position_embeddings": 48,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0],
            "original_max_position_embeddings": 48,
        },
    },
    "qwen2": {"model_type": "qwen2", **_DECODER},
    # The second layer sees 16 tokens back.
    "qwen2_sliding": {
        "model_type": "qwen2",
        **_DECODER,
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **_DECODER, "head_dim": 12},
    "mistral": {"model_type": "mistral", **_DECODER, "sliding_window": 16},
    "gemma": {"model_type": "gemma", **_DECODER, "head_dim": 8},
    # Squashes its attention logits, which no packed kernel does.
    "gemma2": {"model_type": "gemma2", **_DECODER, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3": {"model_type": "gemma3_text", **_DECODER, "head_dim": 8, "sliding_window": 16},
    # Its values are smaller than its keys. Without experts.
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **_DECODER,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 2,
    },
}
ENCODERS = ("bert", "roberta", "distilbert", "electra", "modernbert", "modernbert_mean", "deberta_v2")
DECODERS = tuple(family for family in FAMILIES if family not in ENCODERS)


def make_checkpoint(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    num_labels: int = 1,
    sharded: bool = False,
    chat_template: str | None = None,
    adds_special_tokens: bool | None = None,
    **config: Any,
) -> Path:
    """Writes a random checkpoint of one of `FAMILIES` into ``folder`` and returns it.

    ``config`` overrides single settings; ``adds_special_tokens`` None: encoders get ``<cls> … <sep>``, decoders none.
    """
    model = make_model(family, seed=seed, num_labels=num_labels, **config)
    model.save_pretrained(folder, max_shard_size="20KB" if sharded else "5GB")
    is_encoder = family in ENCODERS
    tokenizer = make_tokenizer(
        adds_special_tokens=is_encoder if adds_special_tokens is None else adds_special_tokens,
        is_encoder=is_encoder,
        has_type_ids=is_encoder and getattr(model.config, "type_vocab_size", 0) > 1,
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def make_model(family: str, *, seed: int = 0, num_labels: int = 1, **config: Any) -> Any:
    """A random sequence classifier of the family in fp32, in evaluation mode."""
    settings = {
        "vocab_size": VOCAB_SIZE,
        "pad_token_id": PAD_ID,
        "eos_token_id": None if family in ENCODERS else EOS_ID,
        "bos_token_id": None if family in ENCODERS else BOS_ID,
        "num_labels": num_labels,
        **FAMILIES[family],
        **config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(settings.pop("model_type"), **settings)
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = parameter.ndim == 1 and name.endswith("weight")
                if is_norm:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                else:
                    parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.25))
    return model.eval()


def make_tokenizer(
    *, adds_special_tokens: bool = False, is_encoder: bool = False, has_type_ids: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges; any text has tokens, and its decoding is the text again."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL_TOKENS, *alphabet, *("".join(merge) for merge in _MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(_MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_special_tokens and is_encoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}",
            pair=f"{CLS} $A {SEP} $B:1 {SEP}:1" if has_type_ids else f"{CLS} $A {SEP} $B {SEP}",
            special_tokens=[(CLS, CLS_ID), (SEP, SEP_ID)],
        )
    elif adds_special_tokens:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
        )
    names = {"cls_token": CLS, "sep_token": SEP} if is_encoder else {"bos_token": BOS, "eos_token": EOS}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        additional_special_tokens=[] if is_encoder else [CLS, SEP],
        model_input_names=["input_ids", *(["token_type_ids"] if has_type_ids else []), "attention_mask"],
        **names,
    )
