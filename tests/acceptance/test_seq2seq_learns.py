"""A small T5, trained from scratch, learns by PPO to continue openings of stories as a sum of two classifiers has it.

The examples' own commands, at their own settings, against a real server that serves grammar + 0.5 neutral sentiment.
The rise is measured on held-out openings; one that is bought by writing little, one text for all, or in circles fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from tiny_policies import read_jsonl
from transformers import AutoModelForSeq2SeqLM

from ppo_client import RewardClient
from ppo_client import cli as ppo_client_cli
from rm_server import cli as rm_server_cli

from .conftest import serving

EXAMPLES = Path(__file__).parents[2] / "examples"
WEIGHTS = {"grammar": 1.0, "neutral sentiment": 0.5}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    """A server with the composite of examples/composite as `quality@stable`."""
    classifiers = tmp_path / "classifiers"
    subprocess.run([sys.executable, str(EXAMPLES / "composite" / "make_classifiers.py"), str(classifiers)], check=True)
    home = ["--home", str(tmp_path / "home")]
    reading = ["--template", "{completion}", "--truncation", "keep_start"]
    for model, folder, *options in (
        ("grammar", classifiers / "grammar", "--label-index", "grammatical", *reading),
        ("sentiment", classifiers / "sentiment", "--label-index", "neutral", *reading),
        ("quality", EXAMPLES / "composite"),
    ):
        assert rm_server_cli.main(["register", model, str(folder), *home, *options]) == 0
        assert rm_server_cli.main(["label", model, "stable", "1", *home]) == 0
    with serving(tmp_path / "home") as address:
        yield address


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """With the policy that the example starts from."""
    place = tmp_path / "t5"
    subprocess.run([sys.executable, str(EXAMPLES / "ppo_seq2seq_start.py"), str(place)], check=True)
    texts = ["--model", str(place / "start"), "--data", str(place / "continuations.jsonl")]
    settings = ("max_steps=2000", "learning_rate=2e-3", "schedule=cosine", "warmup_steps=100", "max_tokens=64")
    options = [f"--set={setting}" for setting in settings]
    assert ppo_client_cli.main(["sft", *texts, "--output", str(place / "policy"), *options]) == 0
    return place


def held_out_texts(policy: Path, target: str) -> list[dict[str, Any]]:
    """One continuation to each held-out opening, with its score and the score's two parts."""
    written = policy.with_suffix(".jsonl")
    source = ["--prompts", str(EXAMPLES / "data" / "story_openings.jsonl.gz"), "--where", "split=held_out"]
    lengths = ["--min-response-tokens", "24", "--max-response-tokens", "48"]
    options = ["--seed", "5", "--json", "--output", str(written)]
    assert ppo_client_cli.main(["sample", str(policy), *source, *lengths, *options]) == 0
    rows = read_jsonl(written)
    with RewardClient(target, run="held-out") as client:
        prompts, completions = [row["prompt"] for row in rows], [row["completion"] for row in rows]
        scores = client.score("quality@stable", prompts=prompts, completions=completions)
    for row, value, parts in zip(rows, scores.values, scores.components, strict=True):
        row |= {"score": value, **{part.name: part.value for part in parts}}
        assert value == pytest.approx(sum(weight * row[name] for name, weight in WEIGHTS.items()), abs=1e-5)
    return rows


def described(rows: list[dict[str, Any]], known: set[str]) -> dict[str, float]:
    """What the texts are like, by figures that no reward looked at, and by the reward and its parts."""
    words = [re.findall(r"[a-z']+", row["completion"].lower()) for row in rows]
    pairs = [list(pairwise(text)) for text in words]
    return {
        **{name: fmean(row[name] for row in rows) for name in ("score", *WEIGHTS)},
        "words": fmean(map(len, words)),
        "ended": fmean(row["has_eos"] for row in rows),
        "known words": fmean(word in known for text in words for word in text),
        "different texts": len({row["completion"] for row in rows}) / len(rows),
        "repeated pairs": fmean(1 - len(set(text)) / len(text) for text in pairs if text),
        "different pairs": len({pair for text in pairs for pair in text}) / sum(map(len, pairs)),
    }


def test_a_small_t5_learns(place: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(EXAMPLES.parent)
    places = ["--policy", str(place / "policy"), "--output", str(place / "run")]
    command = ["train", str(EXAMPLES / "ppo_seq2seq.toml"), *places, "--reward-target", target]
    assert ppo_client_cli.main(command) == 0

    steps = read_jsonl(place / "run" / "metrics.jsonl")
    assert abs(steps[0]["kl"]) < 1e-4
    assert max(step["first_max_log_ratio"] for step in steps) < 1e-4
    texts = [held_out_texts(policy, target) for policy in (place / "policy", place / "run" / "policy")]
    stories = " ".join(row["completion"] for row in read_jsonl(place / "continuations.jsonl"))
    before, after = (described(rows, set(re.findall(r"[a-z']+", stories.lower()))) for rows in texts)
    rise = (after["score"] - before["score"]) / stdev(row["score"] for row in texts[0])
    figures = {"before": before, "after": after, "rise in standard deviations": rise, "kl": steps[-1]["kl"]}
    print(json.dumps(figures, indent=2))
    for old, new in zip(*(rows[:6] for rows in texts), strict=True):
        print(f"{old['prompt']}\n  before: {old['completion']}\n  after:  {new['completion']}")

    assert rise >= 1.0
    assert all(after[part] > before[part] for part in WEIGHTS)
    assert after["words"] > 0.75 * before["words"]
    assert after["different texts"] > 0.9
    assert after["repeated pairs"] < 0.1
    assert after["known words"] > before["known words"] - 0.02
    assert steps[-1]["kl"] < 40  # nats per episode
    assert AutoModelForSeq2SeqLM.from_pretrained(place / "run" / "policy").config.model_type == "t5"
