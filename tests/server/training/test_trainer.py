"""Training: it learns, repeats itself, goes on where it was, and gives a folder that serving reads alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, TrainerCallback
from trl import RewardConfig

from rm_server.errors import AlreadyExists, InvalidRequest, NonFiniteScore, StorageFull
from rm_server.registry.manifest import read_manifest
from rm_server.training.assessment import Subject, assess
from rm_server.training.data_files import BadData
from rm_server.training.offline_scoring import offline_scorer
from rm_server.training.preferences import read_preferences, read_split
from rm_server.training.settings import TrainSettings
from rm_server.training.trainer import TrainedVersion, train

WritePairs = Callable[..., Path]


def settings(base: Path, **changes: Any) -> TrainSettings:
    chosen: dict[str, Any] = {"learning_rate": 3e-3, "epochs": 1, "held_out_share": 0.2, "device": "cpu", **changes}
    return TrainSettings(base=str(base), **chosen)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def accuracy(trained: TrainedVersion) -> float:
    score = offline_scorer(trained.folder, trained.manifest)
    return assess(score, Subject("m", "", "", ""), trained.held_out).evaluation.accuracy


class StopAfter(TrainerCallback):
    """Interrupts the run after a step, as a killed process would be."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("family", "template"), [("bert", "pair"), ("gpt2", None), ("qwen2", "{prompt} ->{completion}")]
)
def test_encoders_and_decoders_learn_from_a_bare_backbone(
    tmp_path: Path, write_pairs: WritePairs, family: str, template: str | None
) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", family)
    AutoModel.from_pretrained(base).save_pretrained(base)
    trained = train(
        write_pairs(480), tmp_path / "v1", settings(base, epochs=3, template=template), shows_progress=False
    )
    assert accuracy(trained) >= 0.9
    assert trained.record["fresh_weights"]
    assert trained.record["history"][-1]["loss"] < 0.3


def test_the_folder_is_a_version_and_says_how_it_came_about(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    data, out = write_pairs(), tmp_path / "v1"
    trained = train(data, out, settings(base, max_tokens=64, truncation="keep_start"), shows_progress=False)
    manifest = read_manifest(out)
    assert manifest == trained.manifest
    assert (manifest.kind, manifest.max_tokens, manifest.truncation) == ("sequence_classification", 64, "keep_start")
    assert {path.name for path in out.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "reward_model.json", "training.json", "split.json",
    }  # fmt: skip
    record = json.loads((out / "training.json").read_text())
    assert record["data"]["num_pairs"] + len(trained.held_out) == 240
    assert record["data"]["num_prompts"] == 48
    assert record["num_steps"] == 12
    assert record["resumed_at_step"] is None
    assert record["settings"]["seed"] == 0


def test_no_prompt_is_on_both_sides(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    data = write_pairs()
    trained = train(data, tmp_path / "v1", settings(base), shows_progress=False)
    parts = read_split(tmp_path / "v1" / "split.json")
    assert {pair.group for pair in trained.held_out} == parts["held_out"]
    assert not {pair.prompt for pair in trained.held_out} & {
        pair.prompt for pair in read_preferences(data) if pair.group in parts["train"]
    }
    assert trained.record["data"]["num_pairs"] == sum(p.group in parts["train"] for p in read_preferences(data))


def test_a_split_file_decides_by_name_and_a_subset_takes_a_share(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    data, split = write_pairs(), tmp_path / "split.json"
    groups = sorted({pair.group for pair in read_preferences(data)})
    split.write_text(json.dumps({"train": groups[:40], "held_out": groups[40:]}))
    chosen = settings(base, split_file=str(split), subset=0.25)
    trained = train(data, tmp_path / "v1", chosen, shows_progress=False)
    assert {pair.group for pair in trained.held_out} == set(groups[40:])
    assert trained.record["data"]["num_prompts"] == 10
    parts = read_split(tmp_path / "v1" / "split.json")
    assert (len(parts["train"]), parts["train"] | parts["unused"]) == (10, set(groups[:40]))
    split.write_text(json.dumps({"train": ["of other data"], "held_out": groups}))
    with pytest.raises(BadData, match="None of the pairs is in the part 'train'"):
        train(data, tmp_path / "v2", chosen, shows_progress=False)


def test_a_run_does_not_go_on_with_another_split(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    data, split = write_pairs(160), tmp_path / "split.json"
    groups = sorted({pair.group for pair in read_preferences(data)})
    split.write_text(json.dumps({"train": groups[:30], "held_out": groups[30:]}))
    chosen = settings(base, split_file=str(split), checkpoint_steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "v1", chosen, shows_progress=False, callbacks=[StopAfter(4)])
    split.write_text(json.dumps({"train": groups[10:], "held_out": groups[:10]}))
    with pytest.raises(AlreadyExists, match=r"other settings \(split_sha256\)"):
        train(data, tmp_path / "v1", chosen, resume=True, shows_progress=False)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    data = write_pairs(120)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(data, tmp_path / name, settings(base, seed=seed, dropout=True), shows_progress=False)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


@pytest.mark.parametrize("stop_after", [5, 13])
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, write_pairs: WritePairs, stop_after: int
) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    data = write_pairs(160)
    # 8 steps an epoch: the stops are in the first and in the second, each two steps after a checkpoint or one before.
    chosen = settings(base, epochs=2, checkpoint_steps=3, dropout=True, lora_rank=0)
    train(data, tmp_path / "whole", chosen, shows_progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", chosen, shows_progress=False, callbacks=[StopAfter(stop_after)])
    trained = train(data, tmp_path / "cut", chosen, resume=True, shows_progress=False)
    assert trained.record["resumed_at_step"] == stop_after // 3 * 3
    assert trained.record["num_steps"] == 16
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    data, out = write_pairs(160), tmp_path / "v1"
    chosen = settings(base, checkpoint_steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(data, out, chosen, shows_progress=False, callbacks=[StopAfter(5)])
    (out / "checkpoints" / "checkpoint-5").mkdir()
    (out / "checkpoints" / "checkpoint-5" / "model.safetensors").write_bytes(b"half")
    assert train(data, out, chosen, resume=True, shows_progress=False).record["resumed_at_step"] == 3


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    data, out = write_pairs(160), tmp_path / "v1"
    chosen = settings(base, checkpoint_steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(data, out, chosen, shows_progress=False, callbacks=[StopAfter(5)])
    with pytest.raises(AlreadyExists, match="unfinished run; give --resume"):
        train(data, out, chosen, shows_progress=False)
    with pytest.raises(AlreadyExists, match=r"other settings \(learning_rate\)"):
        train(data, out, settings(base, checkpoint_steps=3, learning_rate=1e-3), resume=True, shows_progress=False)
    train(data, out, chosen, resume=True, shows_progress=False)
    with pytest.raises(AlreadyExists, match="already has a finished version"):
        train(data, out, chosen, resume=True, shows_progress=False)
    with pytest.raises(AlreadyExists, match="has other files in it"):
        train(data, tmp_path, chosen, shows_progress=False)


def test_what_fails_before_training_leaves_no_folder(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    with pytest.raises(BadData, match="too long"):
        train(write_pairs(), tmp_path / "v1", settings(base, max_tokens=8), shows_progress=False)
    assert not (tmp_path / "v1").exists()


def test_more_tokens_than_positions_are_refused_before_training(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    with pytest.raises(InvalidRequest, match="--max-tokens 200 is more than the 128 positions"):
        train(write_pairs(40), tmp_path / "v1", settings(base, max_tokens=200), shows_progress=False)


def test_a_template_without_a_place_for_prompts_is_told(
    tmp_path: Path, write_pairs: WritePairs, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    train(write_pairs(), tmp_path / "v1", settings(base, template="A: {completion}"), shows_progress=False)
    assert "Prompts will not be read" in caplog.text


def test_several_processes_are_refused(
    tmp_path: Path, write_pairs: WritePairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewardConfig, "world_size", property(lambda self: 2))
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    with pytest.raises(InvalidRequest, match="one process, not in 2"):
        train(write_pairs(40), tmp_path / "v1", settings(base), shows_progress=False)


def test_passes_that_do_not_make_up_the_batch_are_refused(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    for batch_size, passes in ((16, 3), (2, 4)):
        chosen = settings(base, batch_size=batch_size, accumulation_steps=passes)
        with pytest.raises(InvalidRequest, match=f"--batch-size {batch_size} is not divided into {passes} passes"):
            train(write_pairs(40), tmp_path / "v1", chosen, shows_progress=False)


@pytest.mark.parametrize(("share", "first"), [(0.0, [8, 7, 6, 5]), (0.5, [0, 2, 4, 6]), (1.0, [0, 1, 2, 3])])
def test_the_learning_rate_rises_for_a_share_of_the_steps(
    tmp_path: Path, write_pairs: WritePairs, share: float, first: list[int]
) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    chosen = settings(base, warmup_share=share, batch_size=2, held_out_share=0)
    history = train(write_pairs(16), tmp_path / "v1", chosen, shows_progress=False).record["history"]
    assert [entry["learning_rate"] * 8 / 3e-3 for entry in history][:4] == pytest.approx(first)


def test_a_run_that_diverges_makes_no_version(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    with pytest.raises(NonFiniteScore, match="smaller --learning-rate"):
        train(write_pairs(120), tmp_path / "v1", settings(base, learning_rate=1e38), shows_progress=False)
    assert not (tmp_path / "v1" / "reward_model.json").exists()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_where_eos_is_padding_the_score_is_still_read_at_the_eos(
    tmp_path: Path, write_pairs: WritePairs, family: str
) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", family, pad_token_id=None)
    tokenizer_config = json.loads((base / "tokenizer_config.json").read_text())
    del tokenizer_config["pad_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    seen: list[torch.Tensor] = []

    class Watch(TrainerCallback):
        """Keeps what the last step's model makes of two texts, one of them padded."""

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            pad = model.config.pad_token_id
            model.eval()
            with torch.no_grad():
                padded = torch.tensor([[40, 41, 42, tiny_models.EOS_ID], [43, tiny_models.EOS_ID, pad, pad]])
                seen.append(model(input_ids=padded, attention_mask=(padded != pad).long()).logits.squeeze(-1))

    trained = train(write_pairs(120), tmp_path / "v1", settings(base), shows_progress=False, callbacks=[Watch()])
    assert trained.manifest.append_eos
    model = AutoModelForSequenceClassification.from_pretrained(trained.folder).eval()
    served = offline_scorer(trained.folder, trained.manifest)(
        [((), (40, 41, 42, tiny_models.EOS_ID)), ((), (43, tiny_models.EOS_ID))]
    )
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([[43, tiny_models.EOS_ID]])).logits.item()
    assert [entry.score for entry in served] == pytest.approx(seen[0].tolist(), abs=1e-5)
    assert served[1].score == pytest.approx(alone, abs=1e-5)


def test_low_rank_adapters_are_merged_into_a_plain_checkpoint(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    trained = train(
        write_pairs(), tmp_path / "v1", settings(base, epochs=3, lora_rank=4, learning_rate=1e-2), shows_progress=False
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (base, trained.folder))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "score.weight" in changed
    assert any("q_proj" in name for name in changed)
    assert not any("norm" in name or "embed" in name for name in changed)
    assert accuracy(trained) > 0.75


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, write_pairs: WritePairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "bert")
    data, out, chosen = write_pairs(160), tmp_path / "v1", settings(base, checkpoint_steps=3)

    def fails(value: Any, place: Any, *_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598")

    with monkeypatch.context() as full:
        full.setattr(torch, "save", fails)
        with pytest.raises(StorageFull, match=r"v1 could not be written .* repeat the command with --resume"):
            train(data, out, chosen, shows_progress=False)
    assert train(data, out, chosen, resume=True, shows_progress=False).record["resumed_at_step"] is None


def test_low_rank_training_resumes_too(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    data, chosen = write_pairs(160), settings(base, checkpoint_steps=3, lora_rank=2)
    train(data, tmp_path / "whole", chosen, shows_progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", chosen, shows_progress=False, callbacks=[StopAfter(5)])
    train(data, tmp_path / "cut", chosen, resume=True, shows_progress=False)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16"}, {"accumulation_steps": 4}, {"gradient_checkpointing": True}, {"center_coefficient": 0.01}],
)
def test_every_way_of_training_learns(tmp_path: Path, write_pairs: WritePairs, changes: dict[str, Any]) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "qwen3")
    trained = train(write_pairs(), tmp_path / "v1", settings(base, epochs=3, **changes), shows_progress=False)
    assert accuracy(trained) > 0.75
    assert load_file(trained.folder / "model.safetensors")["score.weight"].dtype == torch.float32


def test_chat_messages_go_through_the_chat_template(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama", chat_template=tiny_models.CHAT_TEMPLATE)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{i // 2}?"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
        for i in range(64)
    ]
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = train(data, tmp_path / "v1", settings(base, epochs=3), shows_progress=False)
    assert trained.manifest.template == "chat"
    assert accuracy(trained) == 1
    assert "of chat messages" not in caplog.text
    train(data, tmp_path / "v2", settings(base, template="pair"), shows_progress=False)
    assert "52 of 52 pairs are of chat messages" in caplog.text, "those to learn from"
    assert "the template 'pair' is for text" in caplog.text
