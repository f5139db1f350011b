"""Computes values.json with trl 1.12's own code: `PYTHON_WITH_TRL_1_12 make.py OUT.json`.

Its formulas stand inside one long method, `PPOTrainer.train`. The lines between two of its own are taken as they are
and run on tensors made here.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl.experimental.ppo import ppo_trainer

NUM_ROWS, NUM_PROMPT_TOKENS, NUM_TOKENS, VOCAB_SIZE = 5, 2, 6, 9
LENGTHS = {"full": (6, 6, 6, 6, 6), "padded": (6, 2, 4, 1, 5)}
FIRST_SHAPING, LAST_SHAPING = "response_idxs = torch.arange(", "advantages = torch.masked_fill(advantages"
FIRST_LOSS, LAST_LOSS = "mb_advantage = advantages[", "entropy = torch.logsumexp("


def lines_between(first: str, last: str) -> str:
    """The lines of `train` from the one that begins with `first` to the one that begins with `last`."""
    lines = inspect.getsource(ppo_trainer.PPOTrainer.train).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    end = next(number for number, line in enumerate(lines) if number >= begin and line.strip().startswith(last))
    kept = [line for line in lines[begin : end + 1] if not line.strip().startswith(("accelerator.", "optimizer."))]
    return textwrap.dedent("\n".join(kept))


def run(source: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names after trl's lines have run."""
    exec(compile(source, "trl 1.12", "exec"), names)
    return names


def make_case(lengths: tuple[int, ...], estimator: str, whiten_rewards: bool) -> dict[str, Any]:
    """Inputs, and what trl makes of them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    args = SimpleNamespace(
        kl_estimator=estimator,
        kl_coef=0.05,
        whiten_rewards=whiten_rewards,
        gamma=0.98,
        lam=0.95,
        temperature=0.7,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
    )
    responses = torch.randint(VOCAB_SIZE, (NUM_ROWS, NUM_TOKENS), generator=generator)
    inputs = {
        "lengths": torch.tensor(lengths),
        "responses": responses,
        "raw_logits": normal(NUM_ROWS, NUM_TOKENS, VOCAB_SIZE),
        "scores": normal(NUM_ROWS),
        "log_probs": -normal(NUM_ROWS, NUM_TOKENS).abs() - 1.5,
        "reference_log_probs": -normal(NUM_ROWS, NUM_TOKENS).abs() - 1.5,
        "values": normal(NUM_ROWS, NUM_TOKENS) / 2,
        "new_values": normal(NUM_ROWS, NUM_TOKENS) / 2,
    }
    common = {**vars(ppo_trainer), "torch": torch, "args": args, "responses": responses}
    shaped = run(
        lines_between(FIRST_SHAPING, LAST_SHAPING),
        {
            **common,
            "sequence_lengths": inputs["lengths"] - 1,  # trl's name for the last token's index
            "scores": inputs["scores"],
            "logprobs": inputs["log_probs"],
            "ref_logprobs": inputs["reference_log_probs"],
            "values": inputs["values"],
        },
    )

    def forward(*_: Any) -> tuple[Any, Tensor]:
        """trl reads the model's logits from the prompt's last column to the last but one."""
        before, after = NUM_PROMPT_TOKENS - 1, 1
        logits = torch.nn.functional.pad(inputs["raw_logits"], (0, 0, before, after))
        values = torch.nn.functional.pad(inputs["new_values"], (before, after))
        return SimpleNamespace(logits=logits), values.unsqueeze(-1)

    losses = run(
        lines_between(FIRST_LOSS, LAST_LOSS),
        {
            **common,
            **{name: shaped[name] for name in ("logprobs", "values", "advantages", "returns", "padding_mask")},
            "padding_mask_p1": shaped["padding_mask_p1"],
            "forward": forward,
            "model": None,
            "query_responses": responses,
            "processing_class": SimpleNamespace(pad_token_id=0),
            "context_length": NUM_PROMPT_TOKENS,
            "micro_batch_inds": torch.arange(NUM_ROWS),
        },
    )
    outputs = {
        **{name: shaped[name] for name in ("kl", "rewards", "advantages", "returns")},
        "plain_advantages": shaped["returns"] - shaped["values"],
        **{name: losses[name] for name in ("new_logprobs", "pg_loss", "vf_loss", "pg_clipfrac", "vf_clipfrac")},
        "entropy": losses["entropy"],
    }
    return {
        "settings": vars(args),
        "inputs": {name: tensor.tolist() for name, tensor in inputs.items()},
        "trl": {name: tensor.tolist() for name, tensor in outputs.items()},
    }


def main() -> None:
    cases = {
        name: make_case(lengths, estimator, whiten_rewards=estimator == "k3")
        for kind, lengths in LENGTHS.items()
        for name, estimator in ((f"{kind}, k1", "k1"), (f"{kind}, k3, whitened rewards", "k3"))
    }
    text = json.dumps({"trl": trl.__version__, "cases": cases}, separators=(",", ":"))
    Path(sys.argv[1]).write_text(text.replace('},"', '},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
