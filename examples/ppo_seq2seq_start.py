"""Makes what examples/ppo_seq2seq.toml begins with: a small T5 that knows nothing yet, and what it is to learn first.

    python examples/ppo_seq2seq_start.py runs/t5

writes runs/t5/start (tokenizer and random weights) and runs/t5/continuations.jsonl: sentences of children's stories as
prompts, the two sentences after each as completions. Seeded.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

STORIES = Path(__file__).parent / "data" / "tinystories.jsonl.gz"
PAD, EOS = "<pad>", "</s>"
END_OF_SENTENCE = re.compile(r'(?<=[.!?])\s+|(?<=[.!?]")\s+')


def read_stories(path: Path, split: str) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [row["text"] for row in map(json.loads, file) if row["split"] == split]


def train_tokenizer(stories: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that ends each text with EOS, as T5's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(stories, trainer)
    eos_id = tokenizer.token_to_id(EOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, eos_id)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> T5ForConditionalGeneration:
    """1.8 million weights."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=512,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=3,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def continuations(stories: list[str]) -> list[dict[str, str]]:
    """Each sentence that two others follow, and these."""
    split = [END_OF_SENTENCE.split(story.strip()) for story in stories]
    return [
        {"prompt": sentences[i], "completion": " ".join(sentences[i + 1 : i + 3])}
        for sentences in split
        for i in range(len(sentences) - 2)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    stories = read_stories(STORIES, "train")
    tokenizer = train_tokenizer(stories, arguments.vocab_size)
    start = arguments.output / "start"
    make_model(tokenizer, arguments.seed).save_pretrained(start)
    tokenizer.save_pretrained(start)
    with (arguments.output / "continuations.jsonl").open("w", encoding="utf-8") as file:
        for row in continuations(stories):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
