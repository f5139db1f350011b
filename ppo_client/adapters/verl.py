"""verl's `compute_score` (0.9), for one answer, awaited, or for a batch.

    reward.custom_reward_function.path=pkg://ppo_client.adapters.verl
    reward.custom_reward_function.name=compute_score_async          # or compute_score, compute_score_batch
    +reward.custom_reward_function.reward_kwargs.model=helpfulness@stable
    +reward.custom_reward_function.reward_kwargs.targets=rewards:50051      # or [a:50051,b:50051]; else RM_TARGET
    +reward.custom_reward_function.reward_kwargs.truncation=keep_end        # or another of ScoreOptions

verl hands over the answer and the row's `extra_info`, not the prompt. So `extra_info` must hold it, as text or chat
messages, under `prompt` or the name given as `prompt_key`; `prompt_key=null` scores the answer without a prompt.
`empty_score` is the score of an answer without text; absent: one that the version has no score for ends the job.

The score comes with `rm_version` and `rm_truncated`, which verl logs. Failures are RewardFailed, wrong
`reward_kwargs` among them: of a TypeError that Python itself raises verl's rate-limited manager would make 0.0.

verl's rate-limited manager gives up a call after `reward.timeout` (300 s) and makes 0.0 of it. The awaited function
turns that into RewardFailed, too; the others, which run in a thread, cannot, so there leave more time than
`reward_kwargs.timeout_s` (60 s) for a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from ppo_client.adapters.clients import shared_client
from ppo_client.adapters.empty import Asked
from ppo_client.adapters.failure import RewardFailed
from ppo_client.client.errors import InvalidRequest, InvalidSettings
from ppo_client.client.score_call import ScoreOptions
from ppo_client.client.scores import Content, Scores


def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    model: str = "",
    targets: str | Sequence[str] | None = None,
    prompt_key: str | None = "prompt",
    empty_score: float | None = None,
    reward_router_address: Any = None,
    reward_model_tokenizer: Any = None,
    **options: Unpack[ScoreOptions],
) -> dict[str, Any]:
    """The score of one answer. ``reward_router_address``, ``reward_model_tokenizer``: verl's own; not used."""
    try:
        asked = _asked([solution_str], [extra_info], prompt_key, empty_score)
        with asked.failing_by_row():
            scores = shared_client(targets).score(
                _named(model), prompts=asked.prompts, completions=asked.completions, **options
            )
    except Exception as error:
        raise _failed(error) from error
    return _rows(asked, scores)[0]


async def compute_score_async(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    model: str = "",
    targets: str | Sequence[str] | None = None,
    prompt_key: str | None = "prompt",
    empty_score: float | None = None,
    reward_router_address: Any = None,
    reward_model_tokenizer: Any = None,
    **options: Unpack[ScoreOptions],
) -> dict[str, Any]:
    """As `compute_score`, awaited: one event loop keeps many answers under way."""
    try:
        asked = _asked([solution_str], [extra_info], prompt_key, empty_score)
        future = shared_client(targets).submit(
            _named(model), prompts=asked.prompts, completions=asked.completions, **options
        )
        with asked.failing_by_row():
            scores = await asyncio.wrap_future(future)
    except asyncio.CancelledError as error:
        # verl's manager makes 0.0 of a call that it cancels because it took long.
        raise RewardFailed("the call was given up (reward.timeout?) before its score came") from error
    except Exception as error:
        raise _failed(error) from error
    return _rows(asked, scores)[0]


def compute_score_batch(
    data_sources: Sequence[Any],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    model: str = "",
    targets: str | Sequence[str] | None = None,
    prompt_key: str | None = "prompt",
    empty_score: float | None = None,
    **options: Unpack[ScoreOptions],
) -> list[dict[str, Any]]:
    """The scores of many answers in one call, for verl's batch reward manager."""
    try:
        asked = _asked(solution_strs, extra_infos, prompt_key, empty_score)
        with asked.failing_by_row():
            scores = shared_client(targets).score(
                _named(model), prompts=asked.prompts, completions=asked.completions, **options
            )
    except Exception as error:
        raise _failed(error) from error
    return _rows(asked, scores)


def _named(model: str) -> str:
    if not model:
        raise InvalidSettings("which reward model? Set reward_kwargs.model, `helpfulness@stable` say")
    return model


def _asked(
    solutions: Sequence[str],
    extra_infos: Sequence[Mapping[str, Any] | None],
    prompt_key: str | None,
    empty_score: float | None,
) -> Asked:
    pairs = [_contents(*row, prompt_key) for row in zip(solutions, extra_infos, strict=True)]
    return Asked.of([prompt for prompt, _ in pairs], [completion for _, completion in pairs], empty_score)


def _contents(solution: str, extra_info: Mapping[str, Any] | None, prompt_key: str | None) -> tuple[Content, Content]:
    if prompt_key is None:
        return "", solution
    prompt = (extra_info or {}).get(prompt_key)
    if prompt is None:
        raise InvalidRequest(
            f"extra_info has no {prompt_key!r}, only {sorted(map(str, extra_info or {}))}: the reward model needs the "
            "prompt. Put it there when the data set is made, name another key as reward_kwargs.prompt_key, or set that "
            "to null to score answers without their prompts"
        )
    if isinstance(prompt, str):
        return prompt, solution
    return prompt, [{"role": "assistant", "content": solution}]


def _rows(asked: Asked, scores: Scores) -> list[dict[str, Any]]:
    return [
        {"score": value, "rm_version": scores.version, "rm_truncated": is_cut}
        for value, is_cut in zip(asked.rewards(scores), asked.truncated(scores), strict=True)
    ]


def _failed(error: Exception) -> RewardFailed:
    return RewardFailed(f"{type(error).__name__}: {error}")
