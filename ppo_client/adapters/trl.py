"""Reward functions for TRL's GRPOTrainer and RLOOTrainer (1.16).

    from ppo_client.adapters.trl import remote_reward

    trainer = GRPOTrainer(model, reward_funcs=remote_reward("localhost:50051", "helpfulness@stable"), ...)

`async_remote_reward` is awaited beside the trainer's other async reward functions. Whatever goes wrong is raised and
ends the training: TRL would take a None for "does not apply" and leave the row out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, Unpack

from ppo_client.adapters.empty import Asked
from ppo_client.client.async_client import AsyncRewardClient
from ppo_client.client.client import RewardClient
from ppo_client.client.errors import InvalidRequest
from ppo_client.client.score_call import ScoreOptions
from ppo_client.client.scores import Content, Scores

_Client = TypeVar("_Client", bound=RewardClient | AsyncRewardClient)
PromptToIds = Callable[[Content], Sequence[int]]

_log = logging.getLogger("ppo_client")


def remote_reward(
    client: RewardClient | str | Sequence[str] | None,
    model: str,
    *,
    name: str | None = None,
    prompt_to_ids: PromptToIds | None = None,
    empty_score: float | None = None,
    **options: Unpack[ScoreOptions],
) -> RemoteReward:
    """A reward function that scores with ``model``, a selector.

    ``client``: a client, or where the servers are; None: RM_TARGET. ``name``: in TRL's logs; None: the selector.
    ``prompt_to_ids``: turns a prompt into ids of the reward model's tokenizer; if given, ids are sent: the prompt's,
    and the completion's as the policy sampled them, which must be ids of the same tokenizer. Otherwise prompts and
    completions are sent as TRL gives them: text, or chat messages. ``empty_score``: the reward of a completion without
    text (EOS came first), which is not sent then; None: one that the version has no score for ends the training.
    ``options``: see ScoreOptions.

    Beside the rewards, TRL logs ``<name>/version`` and ``<name>/truncated`` (share of the completions).
    """
    if not isinstance(client, RewardClient):
        client = RewardClient(client)
    return RemoteReward(client, model, name, prompt_to_ids, empty_score, options)


def async_remote_reward(
    client: AsyncRewardClient | str | Sequence[str] | None,
    model: str,
    *,
    name: str | None = None,
    prompt_to_ids: PromptToIds | None = None,
    empty_score: float | None = None,
    **options: Unpack[ScoreOptions],
) -> AsyncRemoteReward:
    """As `remote_reward`, awaited."""
    if not isinstance(client, AsyncRewardClient):
        client = AsyncRewardClient(client)
    return AsyncRemoteReward(client, model, name, prompt_to_ids, empty_score, options)


class _Reward(Generic[_Client]):
    """What TRL hands over, made into a call; and what is logged of the answer."""

    def __init__(
        self,
        client: _Client,
        model: str,
        name: str | None,
        prompt_to_ids: PromptToIds | None,
        empty_score: float | None,
        options: ScoreOptions,
    ) -> None:
        self.client = client
        self.model = model
        self.__name__ = name or model  # what TRL calls it in its logs
        self._prompt_to_ids = prompt_to_ids
        self._empty_score = empty_score
        self._options = options
        self._version: tuple[int, str] | None = None

    def _asked(
        self, prompts: Sequence[Content], completions: Sequence[Content], completion_ids: Sequence[Sequence[int]] | None
    ) -> Asked:
        if self._prompt_to_ids is not None:
            if completion_ids is None:
                raise InvalidRequest("prompt_to_ids is set and no completion_ids came; does this trainer pass them?")
            prompts, completions = [self._prompt_to_ids(prompt) for prompt in prompts], completion_ids
        return Asked.of(prompts, completions, self._empty_score)

    def _rewards(self, asked: Asked, scores: Scores, log_metric: Callable[[str, float], None] | None) -> list[float]:
        version = scores.version, scores.digest
        if self._version not in (None, version):
            _log.warning("%s: rewards now come from version %s, digest %.12s", self.model, *version)
        self._version = version
        if log_metric is not None and scores.values:
            log_metric(f"{self.__name__}/version", float(scores.version))
            log_metric(f"{self.__name__}/truncated", sum(scores.truncated) / len(scores))
        return asked.rewards(scores)


class RemoteReward(_Reward[RewardClient]):
    """What `remote_reward` makes. May be pickled."""

    def __call__(
        self,
        prompts: Sequence[Content],
        completions: Sequence[Content],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_columns: Any,
    ) -> list[float]:
        """One reward for each completion. ``_columns``: the data set's others, which the reward model does not see."""
        asked = self._asked(prompts, completions, completion_ids)
        with asked.failing_by_row():
            scores = self.client.score(
                self.model, prompts=asked.prompts, completions=asked.completions, **self._options
            )
        return self._rewards(asked, scores, log_metric)


class AsyncRemoteReward(_Reward[AsyncRewardClient]):
    """What `async_remote_reward` makes. May be pickled."""

    async def __call__(
        self,
        prompts: Sequence[Content],
        completions: Sequence[Content],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_columns: Any,
    ) -> list[float]:
        """As RemoteReward."""
        asked = self._asked(prompts, completions, completion_ids)
        with asked.failing_by_row():
            scores = await self.client.score(
                self.model, prompts=asked.prompts, completions=asked.completions, **self._options
            )
        return self._rewards(asked, scores, log_metric)
