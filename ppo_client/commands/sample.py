"""`ppo-client sample`: lets a policy write, with the sampler that PPO uses, and keeps the best by a reward model."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ppo_client.client.client import RewardClient
from ppo_client.client.scores import Content, Scores
from ppo_client.ppo.choosing import Row, above, best_of_each
from ppo_client.ppo.config import DataConfig, RewardConfig, RolloutConfig
from ppo_client.ppo.errors import ConfigError, DataError, VersionChanged
from ppo_client.ppo.prompts import Prompt, load_prompts, make_prompt
from ppo_client.ppo.scores.reward_source import checked

if TYPE_CHECKING:
    import torch

    from ppo_client.ppo.policy import Policy

_BATCHES_UNDER_WAY = 4

_EXAMPLES = """examples:
  ppo-client sample runs/a/policy --prompt "Once upon a time"
  ppo-client sample runs/a/policy --prompts openings.jsonl.gz --limit 100 --json > samples.jsonl
  ppo-client sample runs/a/policy --prompts openings.jsonl.gz --reward helpfulness@3 --best-of 16 --json > best.jsonl
  ppo-client sample runs/a/policy --prompts openings.jsonl.gz --completions 8 --reward helpfulness@3 --keep-above 1.5 \\
      --server localhost:50051 --output kept.jsonl --json
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sample",
        help="let a policy write; best-of-n and rejection sampling",
        description="Samples completions of prompts; the same seed gives the same texts. With --reward they are "
        "scored, and the best of each prompt, or those above a threshold, are kept.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policy", help="model directory, for example RUN/policy")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    source.add_argument("--prompts", metavar="FILE", help="as data.prompts of a run: .jsonl, .json, .csv, .parquet")
    parser.add_argument("--field", default="prompt", help="of the file's rows (default: prompt)")
    parser.add_argument("--where", default="", metavar="FIELD=VALUE", help="only rows that have this value")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--completions", type=int, default=1, metavar="N", help="per prompt (default: 1)")
    parser.add_argument("--max-response-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--min-response-tokens", type=int, default=1, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--device", default="", help="such as cpu or cuda:1 (default: cuda where there is one)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reward", metavar="SELECTOR", help="reward model that scores: name, name@3 or name@label")
    parser.add_argument("--best-of", type=int, metavar="N", help="write N completions of each prompt, keep the best")
    parser.add_argument("--keep-above", type=float, metavar="SCORE", help="keep completions with a higher score")
    parser.add_argument("--server", help="host:port, several with commas; default: RM_TARGET")
    parser.add_argument("--calibrated", action="store_true", help="scores on the model's common scale")
    parser.add_argument(
        "--truncation",
        choices=("refuse", "keep_end", "keep_start"),
        help="of what is too long for the reward model (default: the version's rule)",
    )
    parser.add_argument(
        "--prompt-template", default="{prompt}", help="the reward model's view of a text prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write there instead of to standard output; FILE.partial until all is written",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="JSON Lines: prompt_row, prompt, completion, has_eos, num_tokens; with --reward score, model, version, "
        "digest; with --best-of best_of, score_mean, too",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    counts = (args.completions, args.batch_size, args.best_of, args.limit)
    if min(count for count in counts if count is not None) < 1 or not 0 < args.temperature < math.inf:
        raise ConfigError(
            "--completions, --batch-size, --best-of and --limit must be at least 1, and --temperature above 0"
        )
    if args.seed < 0:
        raise ConfigError("--seed must not be negative")
    if args.keep_above is not None and math.isnan(args.keep_above):
        raise ConfigError("--keep-above must be a number")
    if not 0 <= args.min_response_tokens <= args.max_response_tokens or args.max_response_tokens < 1:
        raise ConfigError("--max-response-tokens must be at least 1, and --min-response-tokens lie between 0 and that")
    if args.reward is None and (args.best_of is not None or args.keep_above is not None):
        raise ConfigError("--best-of and --keep-above go by scores: name a reward model with --reward")
    if args.reward is None and (args.calibrated or args.truncation is not None or args.prompt_template != "{prompt}"):
        raise ConfigError(
            "--calibrated, --truncation and --prompt-template say how completions are scored: name a reward model with "
            "--reward"
        )
    if "{prompt}" not in args.prompt_template:
        raise ConfigError('--prompt-template has no "{prompt}", so the reward model would not see the prompt')
    if args.prompt is not None and (args.where or args.field != "prompt"):
        raise ConfigError("--field and --where are for the rows of a file: name one with --prompts, or leave them out")
    if args.best_of is not None and args.completions > 1:
        raise ConfigError("--best-of says how many completions are written: leave --completions out")
    with ExitStack() as stack:
        file = stack.enter_context(_written(args.output)) if args.output else sys.stdout
        rows: Iterable[Row] = (row for rows, _, _ in _batches(args) for row in rows)
        if args.reward is not None:
            rows = _scored(stack.enter_context(RewardClient(args.server)), args)
            if args.best_of is not None:
                rows = best_of_each(rows)
            if args.keep_above is not None:
                rows = above(rows, args.keep_above)
        num_rows = 0
        for row in rows:
            num_rows += 1
            score = f"[{row['score']:.3f}] " if "score" in row else ""
            text = f"{score}{row['prompt']} ▸ {row['completion']}\n"
            print(json.dumps(row, ensure_ascii=False) if args.json else text, file=file, flush=True)
    if args.keep_above is not None:
        print(f"{num_rows} completions have a score above {args.keep_above:g}", file=sys.stderr)
    return 0


@contextmanager
def _written(path: Path) -> Iterator[IO[str]]:
    """A file that takes the place of what ``path`` names when all is written; until then it is ``path``.partial."""
    is_device = path.exists() and not path.is_file()  # such as a pipe: nothing may take its place
    growing = path if is_device else path.with_name(f"{path.name}.partial")
    try:
        file = growing.open("w", encoding="utf-8")
    except OSError as error:
        raise DataError(f"--output: {path} cannot be written: {error}") from error
    with file:
        yield file
    if not is_device:
        growing.replace(path)


def _scored(client: RewardClient, args: argparse.Namespace) -> Iterator[Row]:
    """The rows with their scores, in order; batches are scored while the next are written.

    Rows without text cannot be scored; they are left out, and counted on standard error. Raises VersionChanged where
    another version or calibration answers than did first: scores of two are not to be compared.
    """
    num_empty = 0
    first: Scores | None = None
    under_way: deque[tuple[list[dict[str, Any]], Future[Scores]]] = deque()

    def first_done() -> Iterator[Row]:
        rows, future = under_way.popleft()
        nonlocal first
        scores = checked(future.result(), num_expected=len(rows), calibrated=args.calibrated)
        first = scores if first is None else first
        if scores.digest != first.digest:
            raise VersionChanged(
                f"{args.reward} was {first.model}@{first.version} and is now {scores.model}@{scores.version}: name the "
                f"version with --reward, and begin again"
            )
        if scores.calibration != first.calibration:
            raise VersionChanged(f"{args.reward} was calibrated anew meanwhile, to another scale: begin again")
        source = {"model": scores.model, "version": scores.version, "digest": scores.digest}
        for row, value in zip(rows, scores.values, strict=True):
            yield {**row, "score": value, **source}

    for rows, prompts, completions in _batches(args):
        sent = [index for index, row in enumerate(rows) if row["completion"]]
        num_empty += len(rows) - len(sent)
        if sent:
            future = client.submit(
                args.reward,
                prompts=[prompts[index] for index in sent],
                completions=[completions[index] for index in sent],
                calibrated=args.calibrated,
                truncation=args.truncation,
            )
            under_way.append(([rows[index] for index in sent], future))
        if len(under_way) >= _BATCHES_UNDER_WAY:
            yield from first_done()
    while under_way:
        yield from first_done()
    if num_empty:
        print(f"{num_empty} completions have no text, so no score, and were left out", file=sys.stderr)


def _batches(args: argparse.Namespace) -> Iterator[tuple[list[dict[str, Any]], list[Content], list[Content]]]:
    """Rows as they are written, with what the reward model is told of prompt and completion."""
    from ppo_client.ppo.models.build import chosen_device, quiet_transformers
    from ppo_client.ppo.models.sequences import Prompts
    from ppo_client.ppo.scores.completions import completion_contents, response_ids, response_texts
    from ppo_client.ppo.seeds import Purpose, uniforms

    quiet_transformers()
    device = chosen_device(args.device)
    policy, tokenizer, prompts = _load(args, device)
    num_completions = args.best_of or args.completions
    repeated = [(row, prompt) for row, prompt in enumerate(prompts) for _ in range(num_completions)]
    for first in range(0, len(repeated), args.batch_size):
        numbered = repeated[first : first + args.batch_size]
        chunk = [prompt for _, prompt in numbered]
        rows = range(first, first + len(chunk))
        numbers = uniforms(args.seed, Purpose.SAMPLING, 0, rows, args.max_response_tokens)
        collated = Prompts.collate([prompt.token_ids for prompt in chunk], policy.pad_id, device)
        samples = policy.sample(collated, numbers)
        ids = response_ids(samples)
        texts = response_texts(samples, tokenizer, continues_prompt=policy.continues_prompt)
        found = [
            {
                "prompt_row": row,
                "prompt": prompt.text,
                "completion": text,
                "has_eos": has_eos,
                "num_tokens": len(tokens),
            }
            for (row, prompt), text, tokens, has_eos in zip(numbered, texts, ids, samples.has_eos.tolist(), strict=True)
        ]
        yield found, [prompt.content for prompt in chunk], completion_contents(chunk, ids, texts)


def _load(args: argparse.Namespace, device: torch.device) -> tuple[Policy, Any | None, list[Prompt]]:
    from ppo_client.ppo.models.build import check_fits, load_policy, load_tokenizer

    tokenizer = load_tokenizer(args.policy)
    rollout = RolloutConfig(
        max_response_tokens=args.max_response_tokens,
        min_response_tokens=args.min_response_tokens,
        temperature=args.temperature,
    )
    policy = load_policy(args.policy, "float32", rollout, tokenizer).eval().to(device)
    prompts = _prompts(args, tokenizer, keeps_eos=not policy.continues_prompt)[: args.limit]
    check_fits(policy, prompts, rollout.max_response_tokens)
    return policy, tokenizer, prompts


def _prompts(args: argparse.Namespace, tokenizer: Any | None, *, keeps_eos: bool) -> list[Prompt]:
    everything = sys.maxsize  # the policy's own limit is checked afterwards
    # A policy without a tokenizer reads ids, and so does its reward model.
    reward = RewardConfig(prompt_template=args.prompt_template, input="token_ids" if tokenizer is None else "text")
    if args.prompts:
        data = DataConfig(prompts=args.prompts, field=args.field, where=args.where, max_prompt_tokens=everything)
        are_scored = args.reward is not None
        return load_prompts(data, reward, tokenizer, keeps_eos=keeps_eos, are_scored=are_scored)
    return [make_prompt(text, reward, tokenizer, "--prompt", keeps_eos=keeps_eos) for text in args.prompt]
