"""Tiny random policies, prompts and reward sources for the trainer's tests; the scores can be computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_models import EOS_ID, FAMILIES, PAD_ID, VOCAB_SIZE, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ppo_client.client.errors import ItemsFailed, ItemTooLong
from ppo_client.client.scores import Content, Scores
from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.config_file import from_mapping

_T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_decoder_layers": 3,
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {**_T5, "decoder_start_token_id": PAD_ID},
    # FLAN-T5's: a gated feed-forward layer, and a vocabulary head of its own.
    "flan_t5": {
        **_T5,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": PAD_ID,
    },
    "bart": {
        "model_type": "bart",
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "decoder_start_token_id": EOS_ID,
        "forced_eos_token_id": None,
    },
}
DECODERS_ONLY = ("gpt2", "llama", "qwen2", "mistral", "gemma2")
FAMILIES_OF_POLICIES = (*DECODERS_ONLY, *ENCODER_DECODERS)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "decoder": ("llama", {}),
    "encoder-decoder": ("t5", {}),
    "lora": ("llama", {"lora": {"rank": 2}}),
}
"""Policies that runs are tried with: a family, and settings."""


def make_language_model(family: str = "gpt2", *, seed: int = 0, scale: float = 0.15, **config: Any) -> Any:
    """Random, with weights drawn larger than a fresh model's, so that a wrong position shows in the logits."""
    settings = {
        "vocab_size": VOCAB_SIZE,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "bos_token_id": None,
        **(ENCODER_DECODERS.get(family) or FAMILIES[family]),
        **config,
    }
    kind = AutoModelForSeq2SeqLM if family in ENCODER_DECODERS else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn_like(parameter) * scale)
    return model


def save_policy(folder: Path, family: str = "gpt2", *, with_tokenizer: bool = True, **config: Any) -> Path:
    make_language_model(family, **config).save_pretrained(folder)
    if with_tokenizer:
        make_tokenizer().save_pretrained(folder)
    return folder


def save_id_prompts(path: Path, *, num_prompts: int = 20, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> Path:
    """Prompts of 3 to 8 token ids."""
    generator = torch.Generator().manual_seed(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_prompts):
            length = int(torch.randint(3, 9, (), generator=generator))
            ids = torch.randint(5, vocab_size, (length,), generator=generator).tolist()
            file.write(json.dumps({"prompt": ids}) + "\n")
    return path


def even_share(prompt: Content, completion: Content) -> float:
    """The share of even token ids; for text, of even UTF-8 bytes."""
    ids = completion.encode() if isinstance(completion, str) else completion
    return sum(token % 2 == 0 for token in ids) / max(len(ids), 1)  # type: ignore[operator]


@dataclass
class FakeRewards:
    """Answers at once with `score(prompt, completion)`, and remembers what was asked."""

    score: Callable[[Content, Content], float] = even_share
    version: int = 1
    digest: str = "0" * 64
    asked: list[tuple[Content, Content]] = field(default_factory=list)
    num_calls: int = 0

    def submit(
        self, model: str, *, prompts: Sequence[Content], completions: Sequence[Content], calibrated: bool = False
    ) -> Future[Scores]:
        assert not calibrated
        self.num_calls += 1
        self.asked += zip(prompts, completions, strict=True)
        future: Future[Scores] = Future()
        future.set_result(
            make_scores(
                [self.score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)],
                model=model.partition("@")[0],
                version=self.version,
                digest=self.digest,
            )
        )
        return future


@dataclass
class PickyRewards(FakeRewards):
    """Has no score for completions whose first token's remainder by 5 is one of `refused`."""

    refused: tuple[int, ...] = (1,)

    def submit(self, model: str, **texts: Any) -> Future[Scores]:
        future = super().submit(model, **texts)
        completions = texts["completions"]
        errors = {row: ItemTooLong("73 tokens") for row, ids in enumerate(completions) if self.refuses(ids)}
        if not errors:
            return future
        values = future.result().values
        failed: Future[Scores] = Future()
        failed.set_exception(
            ItemsFailed(
                f"no score for {len(errors)}",
                errors=errors,
                scores={row: value for row, value in enumerate(values) if row not in errors},
                model=model.partition("@")[0],
                version=self.version,
                digest=self.digest,
            )
        )
        return failed

    def refuses(self, completion: Any) -> bool:
        return completion[0] % 5 in self.refused


def make_scores(values: list[Any], *, model: str = "even", version: int = 1, digest: str = "0" * 64) -> Scores:
    return Scores(
        values=values,
        model=model,
        version=version,
        digest=digest,
        truncated=[False] * len(values),
        num_tokens=[1] * len(values),
    )


def make_config(folder: Path, **sections: dict[str, Any]) -> PPOConfig:
    """A run of a few small steps in `folder`, which has a policy in `policy/` and prompts in `prompts.jsonl`."""
    settings: dict[str, dict[str, Any]] = {
        "policy": {"model": str(folder / "policy")},
        "data": {"prompts": str(folder / "prompts.jsonl")},
        "rollout": {"max_response_tokens": 6},
        "reward": {"model": "even", "input": "token_ids"},
        "ppo": {"batch_size": 8, "num_epochs": 2, "num_minibatches": 2, "learning_rate": 1e-3, "schedule": "constant"},
        "train": {"output": str(folder / "run"), "num_steps": 2, "tracking": [], "seed": 1},
    }
    for name, values in sections.items():
        settings.setdefault(name, {}).update(values)
    return from_mapping(PPOConfig, settings)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be the same in two runs of one seed."""
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in rows]
