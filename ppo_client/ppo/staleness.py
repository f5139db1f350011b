"""Learning from responses that an older policy wrote: how much each token counts, and how they survive a checkpoint.

With `rollout.max_staleness = 1` the next step's responses are sampled before the update, so that they are scored
while it runs. PPO's ratio is then taken from the policy just before the update, and each token weighted by
min(c, π / π_sampled): the decoupled objective of Hilton et al. 2022 ("Batch size-invariance for policy optimization")
and of AReaL (Fu et al. 2025, section 5.2), with the truncation of IMPALA (Espeholt et al. 2018, section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppo_client.ppo.models.sequences import Prompts, Sequences
from ppo_client.ppo.policy import Samples


def importance_weights(log_probs: Tensor, sampled_log_probs: Tensor, response_mask: Tensor, limit: float) -> Tensor:
    """min(limit, π / π_sampled), 1 where the mask is False; all float32 (B, R)."""
    log_ratio = torch.where(response_mask, log_probs - sampled_log_probs, 0.0)
    return log_ratio.exp().clamp(max=limit)


def to_tensors(chunks: Sequence[Samples]) -> list[dict[str, Tensor]]:
    """Samples as tensors that `torch.load` reads with weights_only."""
    return [_to_tensors(samples) for samples in chunks]


def _to_tensors(samples: Samples) -> dict[str, Tensor]:
    assert samples.entropies is not None, "no other engine writes ahead"
    return {
        "prompt_ids": samples.sequences.prompts.ids.cpu(),
        "prompt_mask": samples.sequences.prompts.mask.cpu(),
        "response_ids": samples.sequences.response_ids.cpu(),
        "response_mask": samples.sequences.response_mask.cpu(),
        "has_eos": samples.has_eos.cpu(),
        "log_probs": samples.log_probs.cpu(),
        "entropies": samples.entropies.cpu(),
    }


def shared_out(chunks: Sequence[Mapping[str, Tensor]], rows: range) -> list[dict[str, Tensor]]:
    """Of what `to_tensors` made in all processes, in order of rank, the rows `rows` of the step's batch."""
    found, first = [], 0
    for chunk in chunks:
        size = len(chunk["has_eos"])
        own = slice(max(rows.start - first, 0), max(rows.stop - first, 0))
        if own.start < min(own.stop, size):
            found.append({name: tensor[own] for name, tensor in chunk.items()})
        first += size
    return found


def from_tensors(chunks: Sequence[Mapping[str, Tensor]], device: torch.device) -> list[Samples]:
    """What `to_tensors` made; values are computed anew when they are needed."""
    found = []
    for chunk in chunks:
        there = {name: tensor.to(device) for name, tensor in chunk.items()}
        prompts = Prompts(there["prompt_ids"], there["prompt_mask"])
        sequences = Sequences(prompts, there["response_ids"], there["response_mask"])
        found.append(Samples(sequences, there["has_eos"], there["log_probs"], there["entropies"], None))
    return found
