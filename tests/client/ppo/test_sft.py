"""A short fine-tune lowers the loss on its texts, learns to end them, and leaves a plain model directory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import EOS_ID
from tiny_policies import save_policy
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from ppo_client import cli
from ppo_client.ppo.errors import ConfigError, DataError
from ppo_client.ppo.sft import SFTSettings, fine_tune, read_examples


def write(path: Path, *rows: dict[str, str]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@torch.no_grad()
def loss_of(folder: Path, text: str) -> float:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[*tokenizer(text)["input_ids"], EOS_ID]])
    return float(model(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("kind", ["text", "prompt and completion"])
def test_fine_tuning(tmp_path: Path, kind: str) -> None:
    policy = save_policy(tmp_path / "policy", "llama")
    row = {"text": "in the end"} if kind == "text" else {"prompt": "in the", "completion": " end"}
    settings = SFTSettings(
        model=str(policy),
        data=write(tmp_path / "data.jsonl", *[row] * 16),
        output=str(tmp_path / "tuned"),
        max_steps=12,
        batch_size=4,
        learning_rate=1e-2,
        schedule="constant",
    )
    before = loss_of(policy, "in the end")
    metrics = fine_tune(settings)
    assert metrics["train_loss"] > 0
    after = loss_of(tmp_path / "tuned", "in the end")
    assert after < (0.5 if kind == "text" else 0.9) * before
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    ids = AutoTokenizer.from_pretrained(tmp_path / "tuned")("in the end", return_tensors="pt")["input_ids"]
    assert int(model(input_ids=ids).logits[0, -1].argmax()) == EOS_ID
    assert len({path.stat().st_mode for path in (tmp_path / "tuned").glob("*.*")}) == 1


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_learns_completions_and_where_they_end(tmp_path: Path, family: str) -> None:
    policy = save_policy(tmp_path / "policy", family)
    data = write(tmp_path / "data.jsonl", *[{"prompt": "in the", "completion": " end"}] * 16)
    output = str(tmp_path / "tuned")
    settings = SFTSettings(
        model=str(policy),
        data=data,
        output=output,
        max_steps=100,
        batch_size=4,
        learning_rate=1e-2,
        schedule="constant",
    )
    assert fine_tune(settings)["train_loss"] > 0
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    ids = tokenizer("in the", return_tensors="pt")["input_ids"]
    # Its cache counts the encoder's layers, of which this T5 has fewer.
    written = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)[0, 1:].tolist()
    assert written == [*tokenizer(" end")["input_ids"], EOS_ID]


def test_an_encoder_decoder_cannot_learn_texts_without_prompts(tmp_path: Path) -> None:
    policy = save_policy(tmp_path / "policy", "t5")
    data = write(tmp_path / "data.jsonl", {"text": "a"})
    with pytest.raises(DataError, match="is an encoder-decoder, which reads a `prompt`"):
        fine_tune(SFTSettings(model=str(policy), data=data, output=str(tmp_path / "tuned")))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = save_policy(tmp_path / "policy", "llama")
    data = write(tmp_path / "data.jsonl", {"text": "a b", "split": "train"}, {"text": "c", "split": "test"})
    arguments = ["--model", str(policy), "--data", data, "--output", str(tmp_path / "📂"), "--json"]
    assert cli.main(["sft", *arguments, "--set", "max_steps=1", "--set", "where=split=train"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "📂")
    assert (tmp_path / "📂" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"story": "x"}], "line 1: a text under `text`"),
        ([{"text": ""}], "line 1: a text"),
        ([{"prompt": "a"}], "line 1: a text"),
        ([{"prompt": "a", "completion": "half \ud83d"}], "line 1: no valid Unicode text"),
        ([{"text": "a"}, {"prompt": "b", "completion": "c"}], "use one kind"),
    ],
)
def test_data_that_cannot_be_learnt(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(SFTSettings(model="m", output="o", data=write(tmp_path / "data.jsonl", *rows)))


@pytest.mark.parametrize(
    "setting",
    [{"log_every_steps": 0}, {"num_epochs": math.inf}, {"max_steps": -1}, {"seed": -1}, {"learning_rate": 0.0}],
)
def test_settings_that_nothing_can_be_learnt_by(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        SFTSettings(model="m", data="d", output="o", **setting)
