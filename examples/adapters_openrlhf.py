"""A reward function file for OpenRLHF, and a check of it that needs no cluster.

Give OpenRLHF this file (or a copy of your own):

    --reward.remote_url examples/adapters_openrlhf.py

and before that see that it works, on one query, with the server that the job will use:

    python examples/adapters_openrlhf.py --server localhost:50051 --model story@stable
"""

from __future__ import annotations

import argparse
import os

from ppo_client import RewardClient
from ppo_client.adapters.openrlhf import RewardFunction

# Made when OpenRLHF loads the file in each of its workers; connects with the first query.
reward_func = RewardFunction(
    RewardClient(os.environ.get("RM_TARGET", "localhost:50051"), timeout_s=300),
    os.environ.get("RM_MODEL", "story@stable"),
    content="split",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="localhost:50051", help="host:port")
    parser.add_argument("--model", default="story@stable", help="selector of the reward model")
    args = parser.parse_args()
    with RewardClient(args.server) as client:
        function = RewardFunction(client, args.model, content="split")
        prompt = "Once upon a time"
        print(function([prompt + ", a fox found a lantern and kept it lit for the lost."], [prompt], [None]))


if __name__ == "__main__":
    main()
