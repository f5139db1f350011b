"""OpenRLHF's own rollout with `ppo_client.adapters.openrlhf` as its reward function file; prints its rewards, as JSON.

Runs in an environment that has openrlhf: `openrlhf_rewards.py`, with RM_TARGET and RM_MODEL. Its rollout is loaded
without the rest of the package, which wants CUDA, DeepSpeed and vLLM; the engine is one that has its answer ready.
"""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

PROMPT, ANSWERS = "Once upon a time", [", a fox.", ", it it it."]


def load_agent() -> Any:
    """`openrlhf.utils.agent`, without running `openrlhf.utils`."""
    found = importlib.machinery.PathFinder.find_spec("openrlhf")
    assert found is not None
    assert found.submodule_search_locations
    root = Path(found.submodule_search_locations[0])
    for name, folder in (("openrlhf", root), ("openrlhf.utils", root / "utils")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return importlib.import_module("openrlhf.utils.agent")


class Letters:
    """A tokenizer of one token a letter."""

    def __call__(self, *, text: str, **_: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


class Engine:
    """Has written already."""

    def __init__(self, answer: str) -> None:
        self._answer = answer

    async def generate(self, *_: Any, **__: Any) -> Any:
        ids = [ord(letter) for letter in self._answer]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)])


async def rollouts(executor: Any) -> list[dict[str, Any]]:
    sampling = SimpleNamespace(max_tokens=16, logprobs=None)
    return await asyncio.gather(
        *(executor.execute(PROMPT, "", sampling, 128, Letters(), Engine(answer)) for answer in ANSWERS)
    )


def main() -> None:
    file = importlib.util.find_spec("ppo_client.adapters.openrlhf")
    assert file is not None
    executor = load_agent().SingleTurnAgentExecutor(file.origin)
    try:
        found: Any = [[row["reward"], row["scores"], row["extra_logs"]] for row in asyncio.run(rollouts(executor))]
    except BaseException as error:
        found = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
