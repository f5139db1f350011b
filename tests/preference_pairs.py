"""Preference data with a known truth: the completion with the word "good" was chosen."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = ("cat", "dog", "sun", "tree", "red", "blue", "old", "new")


def make_pairs(path: Path, num_pairs: int = 240, seed: int = 0) -> Path:
    """Writes pairs, four to a prompt, as JSON Lines."""
    rng = random.Random(seed)

    def completion(mark: str) -> str:
        words = rng.choices(WORDS, k=rng.randint(2, 5))
        words.insert(rng.randrange(len(words) + 1), mark)
        return " " + " ".join(words)

    rows = [
        {"prompt": f"Prompt {i // 4}:", "chosen": completion("good"), "rejected": completion("bad")}
        for i in range(num_pairs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
