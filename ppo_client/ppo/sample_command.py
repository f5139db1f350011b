"""`ppo-client sample`: lets a policy write, with the sampler that PPO uses."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ppo_client.ppo.config import DataConfig, RewardConfig, RolloutConfig
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.prompts import Prompt, load_prompts, make_prompt

_EXAMPLES = """examples:
  ppo-client sample runs/a/policy --prompt "Once upon a time"
  ppo-client sample runs/a/policy --prompts openings.jsonl.gz --limit 100 --json > samples.jsonl
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sample",
        help="let a policy write",
        description="Samples completions of prompts; the same seed gives the same texts.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policy", help="model directory, for example RUN/policy")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    source.add_argument("--prompts", metavar="FILE", help="JSON Lines file, .gz too")
    parser.add_argument("--field", default="prompt", help="of the file's rows (default: prompt)")
    parser.add_argument("--where", default="", metavar="FIELD=VALUE", help="only rows that have this value")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--completions", type=int, default=1, metavar="N", help="per prompt (default: 1)")
    parser.add_argument("--max-response-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--min-response-tokens", type=int, default=1, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to standard output")
    parser.add_argument("--json", action="store_true", help="JSON Lines: prompt, completion, has_eos, num_tokens")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if min(args.completions, args.batch_size) < 1 or args.temperature <= 0:
        raise ConfigError("--completions and --batch-size must be at least 1, --temperature above 0")
    if not 0 <= args.min_response_tokens <= args.max_response_tokens:
        raise ConfigError("--min-response-tokens must lie between 0 and --max-response-tokens")
    with args.output.open("w", encoding="utf-8") if args.output else nullcontext(sys.stdout) as file:
        for row in _samples(args):
            line = json.dumps(row, ensure_ascii=False) if args.json else f"{row['prompt']} ▸ {row['completion']}\n"
            print(line, file=file, flush=True)
    return 0


def _samples(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from ppo_client.ppo.build import check_fits, load_policy, load_tokenizer, quiet_transformers
    from ppo_client.ppo.completions import response_ids, response_texts
    from ppo_client.ppo.seeds import Purpose, uniforms
    from ppo_client.ppo.sequences import Prompts

    quiet_transformers()
    tokenizer = load_tokenizer(args.policy)
    rollout = RolloutConfig(
        max_response_tokens=args.max_response_tokens,
        min_response_tokens=args.min_response_tokens,
        temperature=args.temperature,
    )
    policy = load_policy(args.policy, "float32", rollout, tokenizer).eval()
    prompts = _prompts(args, tokenizer, keeps_eos=not policy.continues_prompt)[: args.limit]
    check_fits(policy, prompts, rollout.max_response_tokens)
    repeated = [prompt for prompt in prompts for _ in range(args.completions)]
    for first in range(0, len(repeated), args.batch_size):
        chunk = repeated[first : first + args.batch_size]
        rows = range(first, first + len(chunk))
        numbers = uniforms(args.seed, Purpose.SAMPLING, 0, rows, rollout.max_response_tokens)
        samples = policy.sample(Prompts.collate([prompt.token_ids for prompt in chunk], policy.pad_id), numbers)
        for prompt, text, ids, has_eos in zip(
            chunk,
            response_texts(samples, tokenizer, continues_prompt=policy.continues_prompt),
            response_ids(samples),
            samples.has_eos.tolist(),
            strict=True,
        ):
            yield {"prompt": prompt.text, "completion": text, "has_eos": has_eos, "num_tokens": len(ids)}


def _prompts(args: argparse.Namespace, tokenizer: Any | None, *, keeps_eos: bool) -> list[Prompt]:
    everything = sys.maxsize  # the policy's own limit is checked afterwards
    if args.prompts:
        data = DataConfig(prompts=args.prompts, field=args.field, where=args.where, max_prompt_tokens=everything)
        return load_prompts(data, RewardConfig(), tokenizer, keeps_eos=keeps_eos)
    return [make_prompt(text, RewardConfig(), tokenizer, "--prompt", keeps_eos=keeps_eos) for text in args.prompt]
