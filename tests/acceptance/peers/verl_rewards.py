"""verl's own loader and reward managers with `ppo_client.adapters.verl`; prints what they make of it, as JSON.

Runs in an environment that has verl: `verl_rewards.py ADDRESS MODEL`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager
from verl.workers.reward_manager.batch import BatchRewardManager

ANSWERS = ["a fox", "it it it"]
SIZE = 12


class Letters:
    """A tokenizer of one token a letter; 0 is no letter."""

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        return "".join(chr(int(number)) for number in ids)


def config_of(manager: str, function: str, **kwargs: Any) -> Any:
    custom = {"path": "pkg://ppo_client.adapters.verl", "name": function, "reward_kwargs": kwargs}
    managers = {"source": "register", "name": manager, "module": None}
    return OmegaConf.create({"reward": {"custom_reward_function": custom, "reward_manager": managers, "timeout": 2.0}})


def batch(answers: list[str]) -> DataProto:
    ids = torch.tensor([[ord(letter) for letter in answer.ljust(SIZE, "\0")] for answer in answers])
    prompts = torch.ones(len(answers), 3, dtype=torch.long)
    rows = {
        "data_source": ["stories"] * len(answers),
        "reward_model": [{"ground_truth": ""} for _ in answers],
        "extra_info": [{"prompt": "Hi"} for _ in answers],
    }
    return DataProto.from_dict(
        tensors={
            "prompts": prompts,
            "responses": ids,
            "attention_mask": torch.cat([torch.ones_like(prompts), (ids > 0).long()], dim=1),
        },
        non_tensors={name: np.array(values, dtype=object) for name, values in rows.items()},
    )


def scored_one_by_one(manager: str, function: str, **kwargs: Any) -> list[float]:
    rewards = load_reward_manager(config_of(manager, function, **kwargs), Letters())
    data = batch(ANSWERS)

    async def main() -> list[Any]:
        return await asyncio.gather(*(rewards.run_single(data[row : row + 1]) for row in range(len(data))))

    return [found["reward_score"] for found in rewards.loop.run_until_complete(main())]


def scored_as_a_batch(**kwargs: Any) -> list[float]:
    function = get_custom_reward_fn(config_of("batch", "compute_score_batch", **kwargs))
    found = BatchRewardManager(Letters(), 0, function)(batch(ANSWERS), return_dict=True)
    return found["reward_tensor"].sum(1).tolist()


def outcome(score: Any, *arguments: Any, **kwargs: Any) -> Any:
    try:
        return score(*arguments, **kwargs)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    address, model = sys.argv[1:]
    ways = {
        "naive, awaited": (scored_one_by_one, "naive", "compute_score_async"),
        "naive, in a thread": (scored_one_by_one, "naive", "compute_score"),
        "rate-limited, awaited": (scored_one_by_one, "rate_limited", "compute_score_async"),
        "batch": (scored_as_a_batch,),
    }
    found = {name: outcome(*way, model=model, targets=address) for name, way in ways.items()}
    failed = {name: outcome(*way, model="nobody@1", targets=address) for name, way in ways.items()}
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and never answers
        name = "rate-limited, awaited"
        late = outcome(*ways[name], model=model, targets=f"127.0.0.1:{silent.getsockname()[1]}")
    print(json.dumps({"scores": found, "failed": failed, "late": late}))


if __name__ == "__main__":
    main()
