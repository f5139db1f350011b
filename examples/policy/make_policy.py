"""Makes the starting policy: a byte-level tokenizer and a small Llama, trained on children's stories.

    python examples/policy/make_policy.py examples/data/tinystories.jsonl.gz examples/policy

Seeded. Writes a checkpoint into --work after every pass and carries on from it when started again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
# Half of the stories are shown after this line, so that the policy continues an opening with it or without.
PROMPT_PREFIX = "Write a short story for this prompt: "


def read_stories(path: Path, split: str) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [row["text"] for row in map(json.loads, file) if row["split"] == split]


def train_tokenizer(stories: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be encoded, and decoding gives it back. BOS is put before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*stories, PROMPT_PREFIX], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, dropout: float) -> LlamaForCausalLM:
    """So little text needs dropout and Llama has none on its branches: hooks put it there while training."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)

    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, dropout, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)
    return model


class Windows:
    """The stories as one stream of token ids, in a fresh order each pass, cut into rows of equal length."""

    def __init__(self, stories: list[str], tokenizer: PreTrainedTokenizerFast, row_tokens: int) -> None:
        self._eos = tokenizer.eos_token_id
        self._plain = [[*ids, self._eos] for ids in tokenizer(stories, verbose=False)["input_ids"]]
        prefixed = tokenizer([PROMPT_PREFIX + story for story in stories], verbose=False)["input_ids"]
        self._prefixed = [[*ids, self._eos] for ids in prefixed]
        self._row_tokens = row_tokens

    def one_pass(self, seed: int) -> Tensor:
        """Token ids, shape (num_rows, row_tokens); which stories have the prefix changes with the pass."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._plain), generator=generator).tolist()
        has_prefix = (torch.rand(len(order), generator=generator) < 0.5).tolist()
        stream = [t for i in order for t in (self._prefixed if has_prefix[i] else self._plain)[i]]
        skipped = int(torch.randint(self._row_tokens, (), generator=generator))
        num_rows = (len(stream) - skipped) // self._row_tokens
        return torch.tensor(stream[skipped : skipped + num_rows * self._row_tokens]).view(num_rows, -1)

    def whole_stories(self) -> list[list[int]]:
        return self._plain


def make_optimizers(model: LlamaForCausalLM, peak: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embeddings and norms.

    After 200 steps AdamW alone had a held-out loss of 4.63, this 3.82.
    """
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=peak, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, stories: list[list[int]], row_tokens: int) -> float:
    """Nats a token over the first `row_tokens` tokens of each held-out story, in fp32."""
    model.eval()
    total, count = 0.0, 0
    for begin in range(0, len(stories), 32):
        rows = [torch.tensor(ids[:row_tokens]) for ids in stories[begin : begin + 32]]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        logits = model(input_ids=ids).logits[:, :-1]
        total += nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").item()
        count += int((labels[:, 1:] != -100).sum())
    return total / count


def batches(rows: Tensor, batch_rows: int) -> Iterator[Tensor]:
    yield from (rows[begin : begin + batch_rows] for begin in range(0, len(rows) - batch_rows + 1, batch_rows))


def learning_rate(progress: float, peak: float) -> float:
    """Warm-up over the first 2 %, then a cosine down to 2 % of the peak."""
    if progress < 0.02:
        return peak * progress / 0.02
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 0.02) / 0.98)))


def save_half(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, temperature: float, target: Path) -> None:
    """The shipped form: fp16, embeddings stored once, the tokenizer beside them, and the temperature within.

    PPO samples from the plain distribution, in which so small a model slips now and then. The logits are linear in the
    last norm's weight: divided by 0.75, they make sampling at temperature 1 what it was at 0.75.
    """
    shipped = LlamaForCausalLM(model.config)
    shipped.load_state_dict(model.state_dict())
    with torch.no_grad():
        shipped.model.norm.weight /= temperature
    shipped.half().save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", type=Path, help="tinystories.jsonl.gz: rows with text and split")
    parser.add_argument("target", type=Path, help="folder for the weights and the tokenizer")
    parser.add_argument("--work", type=Path, default=Path("demo_work/policy"), help="folder for checkpoints")
    parser.add_argument("--passes", type=int, default=8, help="times over the stories")
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--temperature", type=float, default=0.75, help="of the shipped policy, see save_half")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 (faster where the CPU has AMX)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    stories = read_stories(options.stories, "train")
    tokenizer = train_tokenizer(stories, options.vocab_size)
    model = make_model(tokenizer, options.dropout)
    windows = Windows(stories, tokenizer, options.row_tokens)
    held_out = Windows(read_stories(options.stories, "held_out"), tokenizer, options.row_tokens).whole_stories()
    optimizers = make_optimizers(model, options.learning_rate, options.weight_decay)
    num_parameters = sum(p.numel() for p in model.parameters())
    first_rows = windows.one_pass(0)
    print(f"{num_parameters:,} parameters, {len(tokenizer)} tokens, about {first_rows.numel():,} tokens a pass")

    checkpoint = options.work / "checkpoint.pt"
    first_pass, seconds = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first_pass, seconds = saved["next_pass"], saved["seconds"]
        print(f"{first_pass} passes are done already")

    for number in range(first_pass, options.passes):
        began = time.perf_counter()
        torch.manual_seed(options.seed * 1000 + number)
        rows = windows.one_pass(options.seed * 1000 + number)
        num_batches = len(rows) // options.batch_rows
        losses = []
        model.train()
        for i, ids in enumerate(batches(rows, options.batch_rows)):
            lr = learning_rate((number + (i + 1) / num_batches) / options.passes, options.learning_rate)
            with torch.autocast("cpu", torch.bfloat16) if options.bf16 else nullcontext():
                logits = model(input_ids=ids, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        seconds += time.perf_counter() - began
        held_out_loss = validation_loss(model, held_out, options.row_tokens)
        print(
            f"pass {number + 1}/{options.passes}: loss {sum(losses) / len(losses):.4f}, "
            f"held out {held_out_loss:.4f}, {seconds:.0f} s",
            flush=True,
        )
        saved = {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "next_pass": number + 1,
            "seconds": seconds,
        }
        torch.save(saved, checkpoint)
    save_half(model, tokenizer, options.temperature, options.target)


if __name__ == "__main__":
    main()
