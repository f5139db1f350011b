"""A small T5, trained from scratch, learns by PPO to continue openings of stories as its reward has it.

The example's own commands, at its own settings, against a real server; the rise is measured on held-out openings.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev

import grpc
import pytest
import torch
from rm_api.v1 import models_pb2, models_pb2_grpc
from running_server import LOCAL_ONLY, make_rules_version
from tiny_policies import read_jsonl
from transformers import AutoModelForSeq2SeqLM

from ppo_client import RewardClient, cli

from .conftest import serving

EXAMPLES = Path(__file__).parents[2] / "examples"
FEELINGS = [
    "happy",
    "sad",
    "scared",
    "excited",
    "angry",
    "proud",
    "upset",
    "afraid",
    "love",
    "loved",
    "loves",
    "cry",
    "cried",
    "fun",
    "smile",
    "smiled",
    "smiling",
    "laugh",
    "laughed",
    "surprised",
    "worried",
    "lonely",
    "glad",
    "joy",
    "hate",
    "mad",
    "nervous",
    "joyful",
]
RULES = (
    {"name": "neutral", "type": "forbidden_words", "words": FEELINGS, "weight": -1.0, "clip": [0, 3]},
    {"name": "sentences", "type": "regex", "pattern": r'^[A-Z"][^.!?]*[.!?]"? [A-Z"][^.!?]*[.!?]"?$', "weight": 1.0},
    {"name": "not in circles", "type": "repetition", "n": 2, "weight": -2.0},
    {"name": "long enough", "type": "length", "min": 12, "max": 40, "soft": 12, "weight": 1.0},
)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    folder = make_rules_version(tmp_path / "story", *RULES)
    with serving(tmp_path / "home") as address:
        with grpc.insecure_channel(address, LOCAL_ONLY) as channel:
            models = models_pb2_grpc.ModelServiceStub(channel)
            models.RegisterVersion(models_pb2.RegisterVersionRequest(model="story", path=str(folder)))
            models.SetLabel(models_pb2.SetLabelRequest(model="story", label="stable", version=1, load=True))
        yield address


def held_out_scores(policy: Path, target: str) -> list[float]:
    """Of one continuation to each held-out opening."""
    written = policy.with_suffix(".jsonl")
    source = ["--prompts", str(EXAMPLES / "data" / "story_openings.jsonl.gz"), "--where", "split=held_out"]
    options = ["--max-response-tokens", "48", "--seed", "5", "--json", "--output", str(written)]
    assert cli.main(["sample", str(policy), *source, *options]) == 0
    rows = [row for row in read_jsonl(written) if row["completion"]]
    with RewardClient(target, run="held-out") as client:
        prompts, completions = [row["prompt"] for row in rows], [row["completion"] for row in rows]
        return client.score("story@stable", prompts=prompts, completions=completions).values


def test_a_small_t5_learns(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(EXAMPLES.parent)
    place = tmp_path / "t5"
    subprocess.run([sys.executable, str(EXAMPLES / "ppo_seq2seq_start.py"), str(place)], check=True)
    sft = ["--model", str(place / "start"), "--data", str(place / "openings.jsonl"), "--output", str(place / "policy")]
    settings = ("max_steps=800", "learning_rate=4e-3", "warmup_steps=40", "max_tokens=64")
    assert cli.main(["sft", *sft, *(f"--set={setting}" for setting in settings)]) == 0
    places = ["--policy", str(place / "policy"), "--output", str(place / "run")]
    assert cli.main(["train", str(EXAMPLES / "ppo_seq2seq.toml"), *places, "--reward-target", target]) == 0

    rows = read_jsonl(place / "run" / "metrics.jsonl")
    assert abs(rows[0]["kl"]) < 1e-4
    assert max(row["first_max_log_ratio"] for row in rows) < 1e-4
    before, after = (held_out_scores(policy, target) for policy in (place / "policy", place / "run" / "policy"))
    rise = (fmean(after) - fmean(before)) / stdev(before)
    print(json.dumps({"before": fmean(before), "after": fmean(after), "rise in standard deviations": rise}))
    assert rise >= 1.0
    assert AutoModelForSeq2SeqLM.from_pretrained(place / "run" / "policy").config.model_type == "t5"
