"""Responses by vLLM, in this process and on the policy's own device. Experimental: see `rollout.generator`.

Written against the sources of vLLM 0.33.0: `LLM`, `LLM.generate`, `LLM.apply_model`, `LLM.reset_prefix_cache`,
`SamplingParams`, `logprobs_mode`; weights go in by the model's own `load_weights`, which knows the names of Hugging
Face checkpoints.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.models.distribution import SamplingRule
from ppo_client.ppo.models.lora import adapter_base, plain_weights
from ppo_client.ppo.models.sequences import Prompts, Sequences
from ppo_client.ppo.policy import Policy, Samples

# Of a float64 in [0, 1): all that one uniform number has to give to a seed.
_SEEDS = 2**53


class VLLMGenerator:
    """One engine for each process, with the policy's weights as of the last `refresh`."""

    is_exact: ClassVar[bool] = False

    def __init__(self, config: PPOConfig, max_prompt_tokens: int, num_processes: int) -> None:
        """Raises ConfigError where vLLM is not installed, or does not take the model."""
        # Else the engine is another process, which would have to be sent the weights.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            vllm = importlib.import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                f'rollout.generator = "vllm" needs vLLM, and it cannot be imported ({error}): install it beside the '
                'torch it was built for (pip install vllm), or set rollout.generator = "own"'
            ) from error
        policy, rollout = config.policy, config.rollout
        is_bf16 = policy.dtype == "bfloat16" or config.train.mixed_precision == "bf16"
        try:
            self._engine: Any = vllm.LLM(
                model=adapter_base(policy.model) or policy.model,
                skip_tokenizer_init=True,
                dtype="bfloat16" if is_bf16 else "float32",
                generation_config="vllm",  # its defaults, not the model's: what is not told is not done
                logprobs_mode="processed_logprobs",  # after temperature and masking, as SamplingRule has them
                max_model_len=max_prompt_tokens + rollout.max_response_tokens,
                gpu_memory_utilization=rollout.vllm_memory_share,
                # With several processes torch.distributed is there already, and each has an engine of its own.
                distributed_executor_backend="external_launcher" if num_processes > 1 else None,
                seed=config.train.seed,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"vLLM does not take the policy {policy.model}: {error}") from error
        self._sampling_params: Any = vllm.SamplingParams

    def refresh(self, policy: Policy) -> None:
        """Copies the policy's weights into the engine, adapters added, and forgets what was computed by older ones."""
        self._engine.apply_model(lambda model: _load(model, policy.model))
        self._engine.reset_prefix_cache()

    def write(
        self,
        policy: Policy,
        prompts: Prompts,
        uniforms: Tensor,
        value_head: Callable[[Tensor], Tensor] | None,
        on_end: Callable[[Samples, list[int]], None],
    ) -> Samples:
        """All at once: nothing is told of a response before the last one has ended."""
        num_rows, num_tokens = uniforms.shape
        ids = [row[counts].tolist() for row, counts in zip(prompts.ids, prompts.mask, strict=True)]
        # A row's first number is a function of (seed, step, row), so its seed is, too.
        params = [self._params(policy.rule, num_tokens, int(first * _SEEDS)) for first in uniforms[:, 0].tolist()]
        requests = self._engine.generate([{"prompt_token_ids": row} for row in ids], params, use_tqdm=False)
        written = [request.outputs[0] for request in requests]
        if len(written) != num_rows or not all(0 < len(output.token_ids) <= num_tokens for output in written):
            lengths = [len(output.token_ids) for output in written]
            raise RuntimeError(
                f"vLLM gave responses of {lengths} tokens to {num_rows} prompts; 1 to {num_tokens} each were asked for"
            )
        return _samples(prompts, written, num_tokens, policy)

    def _params(self, rule: SamplingRule, max_tokens: int, seed: int) -> Any:
        return self._sampling_params(
            temperature=rule.temperature,
            max_tokens=max_tokens,
            min_tokens=rule.min_tokens,
            stop_token_ids=list(rule.eos_ids),
            ignore_eos=True,  # the model's own idea of it; ours are the stop tokens
            logprobs=0,  # of the sampled token alone
            detokenize=False,
            seed=seed,
        )


def _load(model: Any, source: Any) -> None:
    model.load_weights(plain_weights(source))


def _samples(prompts: Prompts, written: Sequence[Any], num_tokens: int, policy: Policy) -> Samples:
    shape, device = (len(written), num_tokens), prompts.ids.device
    ids = torch.full(shape, policy.pad_id)
    mask = torch.zeros(shape, dtype=torch.bool)
    log_probs = torch.zeros(shape)
    for row, output in enumerate(written):
        tokens = list(output.token_ids)
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
        of_tokens = [at[token].logprob for token, at in zip(tokens, output.logprobs, strict=True)]
        log_probs[row, : len(tokens)] = torch.tensor(of_tokens)
    has_eos = torch.tensor([output.token_ids[-1] in policy.rule.eos_ids for output in written])
    if policy.rule.min_tokens >= num_tokens:  # it could not be drawn: an id that looks like one is no end
        has_eos[:] = False
    sequences = Sequences(prompts, ids.to(device), mask.to(device))
    return Samples(sequences, has_eos.to(device), log_probs.to(device), None, None)
