"""What verl does with `ppo_client.adapters.verl`, on two answers, to see that it works before a job is started.

    python examples/adapters_verl.py --server localhost:50051 --model story@stable

The job's own settings are then

    reward.custom_reward_function.path=pkg://ppo_client.adapters.verl
    reward.custom_reward_function.name=compute_score_async
    +reward.custom_reward_function.reward_kwargs.model=story@stable
    +reward.custom_reward_function.reward_kwargs.targets=localhost:50051
"""

from __future__ import annotations

import argparse
import asyncio

from ppo_client.adapters.verl import compute_score_async, compute_score_batch

ANSWERS = ["a fox found a lantern and kept it lit for the lost.", "it it it it it it it."]
EXTRA_INFO = {"prompt": "Once upon a time, "}


async def score_each(model: str, server: str) -> list[dict[str, object]]:
    """One call for each answer, all under way together, as verl's reward loop makes them."""
    return await asyncio.gather(
        *(
            compute_score_async("stories", answer, ground_truth="", extra_info=EXTRA_INFO, model=model, targets=server)
            for answer in ANSWERS
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="localhost:50051", help="host:port")
    parser.add_argument("--model", default="story@stable", help="selector of the reward model")
    args = parser.parse_args()
    print(asyncio.run(score_each(args.model, args.server)))
    print(
        compute_score_batch(["stories"] * 2, ANSWERS, ["", ""], [EXTRA_INFO] * 2, model=args.model, targets=args.server)
    )


if __name__ == "__main__":
    main()
