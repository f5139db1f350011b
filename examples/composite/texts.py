"""Labelled texts for the two classifiers of this example: by people where there are such labels, else by a stated rule.

Labels by rule are cheap and only roughly right; README.md says what they make the classifiers mean.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

DATA = Path(__file__).parents[1] / "data"
END_OF_SENTENCE = re.compile(r'(?<=[.!?])\s+|(?<=[.!?]")\s+')
HELD_OUT_EVERY = 10  # of the labelled sentences; stories have a split of their own

NEGATIVE, NEUTRAL, POSITIVE = range(3)
OTHER_FORM = {
    "was": "were", "were": "was", "is": "are", "are": "is", "has": "have", "have": "has", "had": "having",
    "he": "him", "him": "he", "she": "her", "they": "them", "them": "they", "a": "an", "an": "a", "to": "the",
    "go": "goes", "went": "go", "want": "wanting", "wanted": "want", "saw": "see", "see": "seen", "said": "say",
}  # fmt: skip

Text: TypeAlias = tuple[str, int]


def read_rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def passages(split: str, draw: random.Random) -> Iterator[str]:
    """One to three sentences that follow one another, from each part of each story."""
    for story in read_rows("tinystories.jsonl.gz"):
        if story["split"] == split:
            sentences = END_OF_SENTENCE.split(story["text"].strip())
            while sentences:
                length = draw.randint(1, 3)
                yield " ".join(sentences[:length])
                sentences = sentences[length:]


def corrupted(text: str, other: str, draw: random.Random) -> str:
    """The text with one to three faults of the kinds that small language models make; ``other`` lends words.

    May come out as it went in, where nothing could be done to it.
    """
    words, strange = text.split(), other.split()
    for _ in range(draw.randint(1, 3)):
        if len(words) < 4:
            break
        at = draw.randrange(len(words) - 1)
        fault = draw.choice(("swap", "drop", "repeat", "replace", "form", "form", "splice", "cut", "blend", "dots"))
        if fault == "swap":
            words[at], words[at + 1] = words[at + 1], words[at]
        elif fault == "drop":
            del words[at]
        elif fault == "repeat":
            length = draw.randint(1, 4)
            words[at:at] = words[at : at + length]
        elif fault == "replace":
            words[at] = draw.choice(strange)
        elif fault == "form":
            words = _with_other_form(words, draw)
        elif fault == "blend":
            words[at] = words[at][: draw.randint(1, 4)] + draw.choice(strange)[-draw.randint(2, 5) :]
        elif fault == "dots":
            at = draw.choice((at, len(words) - 1))
            words[at] += draw.choice(".,!") * draw.randint(1, 2) + "." * draw.randint(1, 10)
        elif fault == "splice":
            words = words[: at + 1] + strange[draw.randrange(len(strange)) :]
        else:
            words = words[: at + 2]
            words[-1] = words[-1].rstrip('.!?"')
    return " ".join(words)


def _with_other_form(words: list[str], draw: random.Random) -> list[str]:
    """One word loses its ending or becomes a form that does not fit."""
    fitting = [i for i, word in enumerate(words) if word in OTHER_FORM or re.fullmatch(r"[a-z]{3,}(ed|s)", word)]
    if not fitting:
        return words
    at = draw.choice(fitting)
    word = words[at]
    return [*words[:at], OTHER_FORM.get(word) or re.sub(r"(ed|s)$", "", word), *words[at + 1 :]]


def grammar_texts(split: str, num_passages: int, seed: int) -> dict[str, list[Text]]:
    """BLiMP's minimal pairs, and passages of stories (1) beside corrupted copies of other passages (0)."""
    draw = random.Random(f"grammar {split} {seed}")
    rows = read_rows("grammar.jsonl.gz")
    pairs = sorted({row["pair"] for row in rows})
    held_out = set(pairs[::HELD_OUT_EVERY])
    labelled = [(row["text"], row["label"]) for row in rows if (row["pair"] in held_out) == (split == "held_out")]
    found = list(passages(split, draw))
    drawn = draw.sample(found, min(num_passages, len(found)))
    good, bad = drawn[::2], drawn[1::2]
    spoilt = [(text, corrupted(text, draw.choice(found), draw)) for text in bad]
    stories = [*((text, 1) for text in good), *((text, 0) for whole, text in spoilt if text != whole)]
    return {"BLiMP": labelled, "stories": stories}


def sentiment_texts(split: str, num_passages: int, seed: int) -> dict[str, list[Text]]:
    """Sentences of film reviews, and passages of stories by their words: none that judges, or only of one kind."""
    draw = random.Random(f"sentiment {split} {seed}")
    reviews = [
        (row["text"], POSITIVE if row["label"] else NEGATIVE)
        for i, row in enumerate(read_rows("reviews.jsonl.gz"))
        if (i % HELD_OUT_EVERY == 0) == (split == "held_out")
    ]
    words = read_rows("opinion_words.jsonl.gz")
    kinds = {row["word"]: POSITIVE if row["label"] == "positive" else NEGATIVE for row in words}
    by_kind: dict[int, list[str]] = {NEGATIVE: [], NEUTRAL: [], POSITIVE: []}
    for text in passages(split, draw):
        # As written: `Sue` and `Joy` are names.
        judging = {kinds[word] for word in re.findall(r"[a-z'-]+", text) if word in kinds}
        if len(judging) < 2:
            by_kind[judging.pop() if judging else NEUTRAL].append(text)
    each = min(num_passages // 3, *map(len, by_kind.values()))
    stories = [(text, kind) for kind, found in by_kind.items() for text in draw.sample(found, each)]
    return {"reviews": reviews, "stories": stories}
