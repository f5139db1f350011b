"""A stand-in for the parts of vLLM that the trainer uses: it samples with our own sampler, from a model of its own.

What a real engine does wrong can be asked for: another temperature than the one it was told, weights it does not take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_models import PAD_ID
from transformers import AutoModelForCausalLM

from ppo_client.ppo.models.build import prepared
from ppo_client.ppo.models.causal import CausalPolicy
from ppo_client.ppo.models.distribution import SamplingRule
from ppo_client.ppo.models.sequences import Prompts


@dataclass(frozen=True)
class SamplingParams:
    temperature: float
    max_tokens: int
    min_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: int
    detokenize: bool
    seed: int


@dataclass
class Logprob:
    logprob: float


@dataclass
class Completion:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]


@dataclass
class Request:
    outputs: list[Completion]


class Model:
    """As vLLM's models: takes weights by name, some of them or all."""

    def __init__(self, place: str) -> None:
        self.model = prepared(AutoModelForCausalLM.from_pretrained(place))
        self.takes_weights = True

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        own, taken = dict(self.model.named_parameters()), set()
        for name, tensor in weights:
            if self.takes_weights:
                own[name].copy_(tensor)
            taken.add(name)
        assert taken == own.keys()
        return taken


@dataclass
class FakeVLLM:
    """The module: `sys.modules["vllm"] = FakeVLLM()`."""

    temperature_factor: float = 1.0
    noise: float = 0.0
    """Standard deviation of what is added to the weights that the engine starts with"""
    takes_weights: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    num_resets: int = 0
    seeds: list[int] = field(default_factory=list)
    SamplingParams: type[SamplingParams] = SamplingParams

    def LLM(self, model: str, **settings: Any) -> Engine:
        self.settings = settings
        return Engine(self, model)


class Engine:
    def __init__(self, module: FakeVLLM, place: str) -> None:
        self.module, self.model = module, Model(place)
        self.model.takes_weights = module.takes_weights
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.model.model.parameters():
                parameter += module.noise * torch.randn(parameter.shape, generator=generator)

    def apply_model(self, function: Callable[[Model], Any]) -> list[Any]:
        return [function(self.model)]

    def reset_prefix_cache(self) -> bool:
        self.module.num_resets += 1
        return True

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], params: Sequence[SamplingParams], *, use_tqdm: bool
    ) -> list[Request]:
        assert not use_tqdm
        return [self._request(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, params, strict=True)]

    def _request(self, prompt: list[int], params: SamplingParams) -> Request:
        self.module.seeds.append(params.seed)
        temperature = params.temperature * self.module.temperature_factor
        rule = SamplingRule(temperature, tuple(params.stop_token_ids), params.min_tokens)
        uniforms = torch.rand(
            1, params.max_tokens, generator=torch.Generator().manual_seed(params.seed), dtype=torch.float64
        )
        samples = CausalPolicy(self.model.model, rule, PAD_ID).sample(Prompts.collate([prompt], PAD_ID), uniforms)
        mask = samples.sequences.response_mask
        ids, log_probs = samples.sequences.response_ids[mask].tolist(), samples.log_probs[mask].tolist()
        given = [{token: Logprob(value)} for token, value in zip(ids, log_probs, strict=True)]
        return Request([Completion(ids, given)])
