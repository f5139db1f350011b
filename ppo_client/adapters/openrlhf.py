"""OpenRLHF's reward function file: give its path as `--reward.remote_url` (0.11).

    export RM_TARGET=rewards:50051 RM_MODEL=helpfulness@stable      # and RM_TOKEN, RM_RUN, RM_TLS_… if needed
    python -m openrlhf.cli.train_ppo_ray ... \
        --reward.remote_url "$(python -c 'import ppo_client.adapters.openrlhf as file; print(file.__file__)')"

RM_CONTENT   `query` (default): the whole decoded text as it is, as over HTTP and by OpenRLHF's own reward server, the
             policy's BOS in front or not; a version that reads prompt and completion apart gets its two parts.
             `split`: the prompt as plain text, and what follows it as its completion, for a template that joins them.

`scores` are what dynamic filtering looks at: set `--algo.dynamic_filtering_range` on the reward model's scale.
A file of your own may set more: `reward_func = RewardFunction(RewardClient(...), "helpfulness", calibrated=True)`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Unpack

from ppo_client.adapters.clients import shared_client
from ppo_client.adapters.failure import RewardFailed
from ppo_client.client.client import RewardClient
from ppo_client.client.errors import InvalidRequest, InvalidSettings
from ppo_client.client.score_call import ScoreOptions
from ppo_client.client.scores import Scores


class RewardFunction:
    """Scores queries with ``model``. ``content``: `query` or `split`, as above. ``options``: see ScoreOptions."""

    def __init__(
        self,
        client: RewardClient,
        model: str,
        *,
        content: Literal["query", "split"] = "query",
        **options: Unpack[ScoreOptions],
    ) -> None:
        if content not in ("query", "split"):
            raise InvalidSettings(f"content (RM_CONTENT) must be 'query' or 'split', got {content!r}")
        self._client = client
        self._model = model
        self._content = content
        self._options = options if content == "split" else {"rendered": True, **options}

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any
    ) -> dict[str, Any]:
        """Rewards of the queries, in the shape that OpenRLHF's reward servers answer with. Raises RewardFailed."""
        try:
            apart = _split if self._content == "split" else _known_parts
            pairs = [apart(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
            scores = self._client.score(
                self._model,
                prompts=[prompt for prompt, _ in pairs],
                completions=[completion for _, completion in pairs],
                **self._options,
            )
        except Exception as error:
            raise RewardFailed(f"{type(error).__name__}: {error}") from error
        return {"rewards": scores.values, "scores": scores.values, "extra_logs": _logs(scores)}


def _logs(scores: Scores) -> dict[str, list[float]]:
    """What OpenRLHF logs by name, one number a query each: the same as over HTTP."""
    logs = {
        "rm_version": [float(scores.version)] * len(scores),
        "rm_truncated": [float(is_cut) for is_cut in scores.truncated],
    }
    for components in scores.components:
        for part in components:
            logs.setdefault(f"component/{part.name}", []).append(part.value)
    return logs


def _known_parts(query: str, prompt: str) -> tuple[str, str]:
    """Prompt and completion; a query that does not begin with its prompt stands alone."""
    return (prompt, query[len(prompt) :]) if query.startswith(prompt) else ("", query)


def _split(query: str, prompt: str) -> tuple[str, str]:
    if not query.startswith(prompt):
        raise InvalidRequest(
            "the query does not begin with its prompt (it was cut to fit, or decodes to something else): "
            f"{query[:80]!r} and {prompt[:80]!r}; score whole queries (RM_CONTENT=query), or give prompts more room"
        )
    return prompt, query[len(prompt) :]


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **others: Any) -> dict[str, Any]:
    """What OpenRLHF calls, set up from the environment."""
    try:
        if not (model := os.environ.get("RM_MODEL")):
            raise InvalidSettings("which reward model? Set RM_MODEL, `helpfulness@stable` say, for every worker")
        content: Any = os.environ.get("RM_CONTENT", "query")
        function = RewardFunction(shared_client(), model, content=content)
    except Exception as error:
        raise RewardFailed(f"{type(error).__name__}: {error}") from error
    return function(queries, prompts, labels, **others)
