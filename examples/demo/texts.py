"""Stories of the demo: what a policy wrote, and how the reward model is shown it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PROMPT_TEMPLATE = "Write a short story for this prompt: {prompt}"
"""As in the human judgements that the reward model learns from; the same as in the runs' settings."""


@dataclass(frozen=True)
class Text:
    """An opening and how it was gone on with."""

    prompt: str
    completion: str


def read_texts(file: Path) -> list[Text]:
    """What `ppo-client sample --json` wrote."""
    # Not splitlines: JSON leaves signs in a text that count as line ends there.
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return [Text(row["prompt"], row["completion"]) for row in rows]
