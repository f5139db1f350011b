"""A language model as a policy: it samples responses and evaluates the responses it sampled.

What is the same for every architecture is here; how each reads a prompt and a response, in `causal.py` and
`seq2seq.py`; what becomes of the logits, in `distribution.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ppo_client.ppo.models.distribution import SamplingRule, draw, entropy
from ppo_client.ppo.models.sequences import Prompts, Sequences
from ppo_client.ppo.models.token_log_probs import token_log_probs

# Finished rows are dropped from the KV cache when they are at least this share of the batch; copying it has its price.
_COMPACTION_SHARE = 0.25


@contextmanager
def _without_cudnn_attention() -> Iterator[None]:
    """From torch 2.11 on it comes first on Hopper, and makes a plan, in tens of ms, for each new shape: for each token
    that is sampled, since the cache grows by one.
    """
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_on)


@dataclass(frozen=True, slots=True)
class Samples:
    """Sampled responses, and what the model thought while it wrote them. R is the longest that was allowed."""

    sequences: Sequences
    has_eos: Tensor
    """bool (B,): ended by itself, was not cut"""
    log_probs: Tensor
    """float32 (B, R), log π of the sampled tokens; 0 where the response mask is False"""
    entropies: Tensor | None
    """float32 (B, R), nats; 0 where the response mask is False; None where another engine wrote"""
    values: Tensor | None
    """float32 (B, R), where a value head was given"""


class Reading(NamedTuple):
    """What a forward pass over sampled responses gives; it holds no logits, which would be most of the memory."""

    log_probs: Tensor
    """float32 (B, R), log π of the response's tokens; anything where the response mask is False"""
    hidden: Tensor
    """(B, R, D): the hidden states from which each response token is predicted"""
    entropies: Tensor | None
    """float32 (B, R), nats, where they were asked for"""


@dataclass(slots=True)
class Decoding:
    """Responses under way: what the model reads next, (B, …) each, and its cache of what it has read."""

    inputs: dict[str, Tensor]
    cache: Any

    def keep(self, rows: Tensor) -> None:
        """Goes on with the rows `rows` alone."""
        self.cache.batch_select_indices(rows)
        self.inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}


class Policy(nn.Module, ABC):
    """Wraps a transformers language model."""

    continues_prompt: ClassVar[bool]
    """Whether a response goes on with the prompt's text, or is a text of its own"""

    def __init__(self, model: Any, rule: SamplingRule, pad_id: int) -> None:
        super().__init__()
        self.model = model
        self.rule = rule
        self.pad_id = pad_id
        # The last hidden states as the model computes them on its way to the logits: `output_hidden_states` would
        # keep every layer's.
        self._hidden: Tensor | None = None

    def forward(self, sequences: Sequences, *, with_entropy: bool = False) -> Reading:
        """The response's tokens as this policy sees them."""
        raw = self._read(sequences)
        hidden = self._take_hidden()
        log_probs, entropies = token_log_probs(raw, sequences.response_ids, self.rule, with_entropy=with_entropy)
        return Reading(log_probs, hidden, entropies)

    @torch.no_grad()
    @_without_cudnn_attention()
    def sample(
        self,
        prompts: Prompts,
        uniforms: Tensor,
        value_head: Callable[[Tensor], Tensor] | None = None,
        on_end: Callable[[Samples, list[int]], None] | None = None,
    ) -> Samples:
        """One response to each prompt, by uniform numbers float64 (B, R); R is the most tokens a response may have.

        `on_end` is told, while the others are still being written, which rows of the samples have ended by EOS.
        """
        device = prompts.ids.device
        num_rows, num_tokens = uniforms.shape
        uniforms = uniforms.to(device)
        ids = torch.full((num_rows, num_tokens), self.pad_id, device=device)
        response_mask = torch.zeros((num_rows, num_tokens), dtype=torch.bool, device=device)
        log_probs = torch.zeros((num_rows, num_tokens), device=device)
        entropies, values = torch.zeros_like(log_probs), torch.zeros_like(log_probs)
        has_eos = torch.zeros(num_rows, dtype=torch.bool, device=device)
        eos = torch.tensor(self.rule.eos_ids, dtype=torch.long, device=device)
        samples = Samples(
            Sequences(prompts, ids, response_mask),
            has_eos,
            log_probs,
            entropies,
            values if value_head is not None else None,
        )

        rows = torch.arange(num_rows, device=device)  # those still in the cache
        decoding = self._begin(prompts)
        for t in range(num_tokens):
            logits = self._step(decoding)
            hidden = self._take_hidden()[:, -1]
            distribution = self.rule.logits(logits[:, -1:], first_position=t)[:, 0].log_softmax(-1)
            drawn = draw(distribution, uniforms[rows, t])

            running = ~has_eos[rows]
            written = rows[running]
            ids[written, t] = drawn[running]
            response_mask[written, t] = True
            log_probs[written, t] = distribution.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)[running]
            entropies[written, t] = entropy(distribution)[running]
            if value_head is not None:
                values[written, t] = value_head(hidden)[running]
            self._append(decoding, drawn)
            if len(eos) and t >= self.rule.min_tokens:
                ended = torch.isin(drawn, eos) & running
                has_eos[rows[ended]] = True
                running &= ~ended
                num_running = int(running.sum())
                if on_end is not None and len(newly := rows[ended].tolist()):
                    on_end(samples, newly)
                if num_running == 0:
                    break
                if num_running <= (1 - _COMPACTION_SHARE) * len(rows) and _can_select_rows(decoding.cache):
                    kept = running.nonzero().squeeze(1)
                    rows = rows[kept]
                    decoding.keep(kept)
        return samples

    @abstractmethod
    def num_positions(self, prompt_tokens: int, response_tokens: int) -> int:
        """How many positions in a row a model needs for a prompt and a response of these lengths."""

    @abstractmethod
    def trunk(self, model: Any) -> nn.Module:
        """The part of a model of this architecture that computes hidden states."""

    @abstractmethod
    def hidden_states(self, trunk: Any, sequences: Sequences) -> Tensor:
        """Of another `trunk`, what `forward` has as hidden states (B, R, D)."""

    @abstractmethod
    def _read(self, sequences: Sequences) -> Tensor:
        """The model's logits (B, R, V) for each response token."""

    @abstractmethod
    def _begin(self, prompts: Prompts) -> Decoding:
        """With the prompts to be read in the first step."""

    @abstractmethod
    def _step(self, decoding: Decoding) -> Tensor:
        """The model's logits (B, T, V); the last column is for the next token."""

    @abstractmethod
    def _append(self, decoding: Decoding, ids: Tensor) -> None:
        """Makes the tokens `ids` (B,) what is read next."""

    def _keep_hidden(self, hidden: Tensor) -> None:
        """To be called by a hook, while the model runs."""
        self._hidden = hidden

    def _take_hidden(self) -> Tensor:
        hidden, self._hidden = self._hidden, None
        assert hidden is not None, "the model did not compute hidden states where they were expected"
        return hidden


def _can_select_rows(cache: Any) -> bool:
    parts = (cache.self_attention_cache, cache.cross_attention_cache) if hasattr(cache, "is_updated") else (cache,)
    return all(hasattr(layer, "batch_select_indices") for part in parts for layer in part.layers)


def disable_dropout(model: nn.Module) -> None:
    """Makes training mode compute what evaluation mode does.

    Dropout would make the ratio of the first minibatch differ from 1. Evaluation mode is no way out, for it turns
    gradient checkpointing off. Beside `nn.Dropout` there are probabilities kept as plain numbers
    (`attention_dropout` of Llama and Qwen, `layerdrop` of OPT and BART), and noise on what a router of experts reads
    (`jitter_noise` of Mixtral).
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            # PhiMoE's `router_jitter_noise` is no noise, but a threshold, in evaluation mode, too.
            is_noise = "drop" in name or ("jitter" in name and name != "router_jitter_noise")
            if is_noise and isinstance(value, float):
                setattr(module, name, 0.0)
