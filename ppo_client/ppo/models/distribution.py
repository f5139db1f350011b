"""The distribution that tokens are drawn from, computed in one way for sampling and for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SamplingRule:
    """What turns a model's logits into the policy's: a temperature, and no EOS before `min_tokens` tokens.

    Both are part of the policy. Applying one in sampling alone would make log-probabilities wrong, and the KL
    estimate negative.
    """

    temperature: float = 1.0
    eos_ids: tuple[int, ...] = ()
    min_tokens: int = 0

    def logits(self, raw: Tensor, first_position: int = 0) -> Tensor:
        """The policy's logits in fp32, from the model's.

        `raw` is (B, T, V); its column 0 predicts response token `first_position`.
        """
        logits = raw.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        num_masked = min(max(self.min_tokens - first_position, 0), logits.shape[1])
        if self.eos_ids and num_masked:
            # Not -inf: p · log p must stay 0 in the entropy.
            lowest = torch.finfo(logits.dtype).min
            eos = torch.tensor(self.eos_ids, device=logits.device)
            masked = logits[:, :num_masked].index_fill(-1, eos, lowest)
            logits = masked if num_masked == logits.shape[1] else torch.cat([masked, logits[:, num_masked:]], 1)
        return logits


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats of distributions given as log-probabilities: (…, V) to (…)."""
    return -(log_probs.exp() * log_probs).sum(-1)


def draw(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens by inversion of the cumulative distribution, one uniform number each.

    One number per token makes a sample a pure function of (seed, step, row, position), whatever else is in the
    batch. Summed in float64: in float32 rare tokens of a large vocabulary would be lost.

    log_probs (B, V), uniforms float64 (B,) in [0, 1); returns int64 (B,).
    """
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
    threshold = (uniforms * cumulative[:, -1]).unsqueeze(-1)
    # right=True: the first entry above the threshold, so a token of probability 0 is never drawn.
    ids = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    return ids.clamp_(max=log_probs.shape[-1] - 1)
