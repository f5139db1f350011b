"""Texts with people's ratings, to compare scores with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rm_server.backends.items import Content
from rm_server.training.data_files import BadData, read_rows
from rm_server.training.rows import content_of, key_of, name_of


@dataclass(frozen=True, slots=True)
class RatedText:
    """A completion and how people rated it; higher is better. ``group``: as in `Preference`."""

    prompt: Content
    completion: Content
    rating: float
    group: str


def read_ratings(path: Path) -> list[RatedText]:
    """Reads ``{prompt, completion, rating}`` rows, with ``group`` where there is one. Raises BadData."""
    texts = []
    for place, row in read_rows(path, ("prompt", "completion", "group")):
        rating = row.get("rating")
        if isinstance(rating, bool) or not isinstance(rating, int | float) or not math.isfinite(rating):
            raise BadData(f"{place}: `rating` must be a finite number, not {rating!r:.100}.")
        prompt = content_of(row, "prompt", place)
        group = name_of(row, "group", place)
        texts.append(
            RatedText(
                prompt=prompt,
                completion=content_of(row, "completion", place),
                rating=float(rating),
                group=key_of(prompt)[:16] if group is None else group,
            )
        )
    if not texts:
        raise BadData(f"{path} has no ratings.")
    return texts
