"""Makes the examples' small data files from copies of larger ones; everything is seeded.

    python examples/data/make_data.py SOURCE_DIR examples/data

LICENSES.md says where the originals come from and what the files in SOURCE_DIR look like.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from truecase import Truecaser

Row = dict[str, Any]

SPLIT_SEED = 20
HELD_OUT_SHARE_OF_PROMPTS = 0.25
V1_SHARE_OF_TRAIN_PROMPTS = 0.25
HELD_OUT_SHARE_OF_STORIES = 0.05
GRAMMAR_PAIRS_PER_PARADIGM = 40
NUM_REVIEWS = 3000
PROMPT_PREFIX = "Write a short story for this prompt: "


def read_rows(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes gzipped JSON Lines; no time stamp and no name in the header, so equal rows give equal bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))
    print(f"{path.name}: {text.count(chr(10))} rows, {path.stat().st_size:,} bytes")


def split_prompts(groups: Iterable[str]) -> dict[str, list[str]]:
    """Divides prompts, not pairs: each is in `train` or in `held_out`; `v1_train` is part of `train`."""
    in_order = sorted(set(groups), key=lambda group: int(group.removeprefix("P")))
    shuffled = random.Random(SPLIT_SEED).sample(in_order, len(in_order))
    num_held_out = round(HELD_OUT_SHARE_OF_PROMPTS * len(shuffled))
    train = shuffled[num_held_out:]
    chosen = {
        "train": set(train),
        "v1_train": set(train[: round(V1_SHARE_OF_TRAIN_PROMPTS * len(train))]),
        "held_out": set(shuffled[:num_held_out]),
    }
    return {name: [group for group in in_order if group in members] for name, members in chosen.items()}


def make_pairs(source: Path, target: Path) -> dict[str, list[str]]:
    kept = ("id", "prompt", "chosen", "rejected", "group", "margin", "length_ratio")
    pairs = [{key: row[key] for key in kept} for row in read_rows(source / "preferences/hanna_pairs.jsonl.gz")]
    split = split_prompts(pair["group"] for pair in pairs)
    for name, groups in split.items():
        write_rows(target / f"hanna_{name}.jsonl.gz", (pair for pair in pairs if pair["group"] in groups))
    (target / "hanna_split.json").write_text(json.dumps({"seed": SPLIT_SEED, **split}) + "\n")
    return split


def make_ratings(source: Path, target: Path, held_out: list[str]) -> None:
    """One row per story of a held-out prompt: means over three raters, of each dimension and of all six."""
    scores_of: dict[str, list[dict[str, float]]] = {}
    stories: dict[str, Row] = {}
    for row in read_rows(source / "ratings/hanna_stories.jsonl.gz"):
        group = row["item_id"].split("-")[1]
        if group in held_out:
            scores_of.setdefault(row["item_id"], []).append(row["scores"])
            stories[row["item_id"]] = {
                "id": row["item_id"],
                "prompt": PROMPT_PREFIX + row["prompt"],
                "completion": row["response"],
                "group": group,
                "system": row["system"],
            }
    for item_id, story in stories.items():
        raters = scores_of[item_id]
        story["ratings"] = {name: round(sum(r[name] for r in raters) / len(raters), 3) for name in raters[0]}
        every_score = [score for rater in raters for score in rater.values()]
        story["rating"] = round(sum(every_score) / len(every_score), 3)
    write_rows(target / "hanna_held_out_ratings.jsonl.gz", stories.values())


def tidy(text: str) -> str:
    """One line break between paragraphs, one space between words."""
    return re.sub(r" *\n[ \n]*", "\n", re.sub(r" +", " ", text)).strip()


def opening_of(story: str) -> str:
    return re.split(r"(?<=[.!?])\s", story, maxsplit=1)[0]


def make_stories(source: Path, target: Path) -> None:
    cased = [{"id": r["id"], "text": tidy(r["text"])} for r in read_rows(source / "stories/tinystories.jsonl.gz")]
    truecaser = Truecaser(story["text"] for story in cased)
    lower = read_rows(source / "stories/tinystories_lower.jsonl.gz")
    restored = [{"id": r["id"], "text": truecaser.restore(tidy(r["text"])), "case": "restored"} for r in lower]
    stories = cased + restored
    random.Random(SPLIT_SEED).shuffle(stories)
    num_held_out = round(HELD_OUT_SHARE_OF_STORIES * len(stories))
    for i, story in enumerate(stories):
        story["split"] = "held_out" if i < num_held_out else "train"
    write_rows(target / "tinystories.jsonl.gz", stories)

    learnt = {opening_of(story["text"]) for story in stories if story["split"] == "train"}
    openings = [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            "split": "train" if row["prompt"] in learnt else "held_out",
        }
        for row in read_rows(source / "prompts/story_openings.jsonl.gz")
    ]
    write_rows(target / "story_openings.jsonl.gz", openings)


def make_labelled_sentences(source: Path, target: Path) -> None:
    """What the classifiers of examples/composite learn from, beside stories."""
    draw = random.Random(SPLIT_SEED)
    pairs_of: dict[str, dict[str, list[Row]]] = {}
    for row in read_rows(source / "classifier/grammar_blimp.jsonl.gz"):
        pairs_of.setdefault(row["paradigm"], {}).setdefault(row["pair"], []).append(row)
    grammar = []
    for paradigm in sorted(pairs_of):
        for pair in draw.sample(sorted(pairs_of[paradigm]), GRAMMAR_PAIRS_PER_PARADIGM):
            rows = sorted(pairs_of[paradigm][pair], key=lambda row: -row["label"])
            grammar += [{key: row[key] for key in ("text", "label", "pair")} for row in rows]
    write_rows(target / "grammar.jsonl.gz", grammar)

    reviews = draw.sample(list(read_rows(source / "classifier/sentiment_rt.jsonl.gz")), NUM_REVIEWS)
    write_rows(target / "reviews.jsonl.gz", ({key: row[key] for key in ("text", "label")} for row in reviews))
    words = read_rows(source / "classifier/opinion_lexicon.jsonl.gz")
    write_rows(target / "opinion_words.jsonl.gz", ({key: row[key] for key in ("word", "label")} for row in words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with preferences/, ratings/, stories/, prompts/, classifier/")
    parser.add_argument("target", type=Path, help="folder to write the files to")
    arguments = parser.parse_args()
    split = make_pairs(arguments.source, arguments.target)
    make_ratings(arguments.source, arguments.target, split["held_out"])
    make_stories(arguments.source, arguments.target)
    make_labelled_sentences(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
