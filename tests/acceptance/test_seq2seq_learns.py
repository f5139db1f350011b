"""A small T5, trained from scratch, learns by PPO to continue openings of stories as its reward has it.

The example's own commands, at its own settings, against a real server; the rise is measured on held-out openings.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

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
FEELINGS = """happy sad scared excited angry proud upset afraid love loved loves cry cried fun smile smiled smiling
laugh laughed surprised worried lonely glad joy hate mad nervous joyful"""
TWO_SENTENCES = r'^[A-Z"][^.!?]*[.!?]"? [A-Z"][^.!?]*[.!?]"?$'


def story_rules(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Real words, up to 34 of them; two whole sentences; no feelings; not in circles."""
    words = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
    known = [word for word, _ in words.most_common(1500)]
    return [
        {
            "name": "words",
            "type": "wanted_words",
            "count": True,
            "words": known,
            "gain": 1 / 34,
            "clip": [0, 1],
            "weight": 3.0,
        },
        {"name": "sentences", "type": "regex", "pattern": TWO_SENTENCES, "weight": 1.0},
        {"name": "neutral", "type": "forbidden_words", "words": FEELINGS.split(), "weight": -0.5},
        {"name": "not in circles", "type": "repetition", "n": 2, "weight": -2.0},
    ]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """With what the example begins with."""
    subprocess.run([sys.executable, str(EXAMPLES / "ppo_seq2seq_start.py"), str(tmp_path / "t5")], check=True)
    return tmp_path / "t5"


@pytest.fixture
def target(tmp_path: Path, place: Path) -> Iterator[str]:
    texts = [row["completion"] for row in read_jsonl(place / "openings.jsonl")]
    folder = make_rules_version(tmp_path / "story", *story_rules(texts))
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


def test_a_small_t5_learns(place: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(EXAMPLES.parent)
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
