"""Scores from a reward-model service, and a PPO trainer that learns from them. Needs grpcio and protobuf, no torch.

    from ppo_client import RewardClient

    with RewardClient("localhost:50051", run="exp-17") as client:
        scores = client.score("helpfulness@stable", prompts=["..."], completions=["..."])
        scores.values, scores.version

All that can go wrong is in `ppo_client.errors`.
"""

from ppo_client import errors
from ppo_client.client.async_client import AsyncRewardClient
from ppo_client.client.client import RewardClient
from ppo_client.client.retry import RetryPolicy
from ppo_client.client.scores import Content, Scores
from ppo_client.client.settings import Tls

__all__ = ["AsyncRewardClient", "Content", "RetryPolicy", "RewardClient", "Scores", "Tls", "errors"]
