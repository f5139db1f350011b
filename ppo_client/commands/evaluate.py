"""`ppo-client evaluate`: a policy beside its reference, on given prompts, by one reward model or two."""

from __future__ import annotations

import argparse
import json
import math
import sys
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppo_client.client.client import RewardClient
from ppo_client.ppo.config import DataConfig, PPOConfig, RewardConfig, RewardModelConfig, RolloutConfig
from ppo_client.ppo.config_file import load_config
from ppo_client.ppo.errors import ConfigError, FailedItems
from ppo_client.ppo.evaluation_facts import EvaluationFacts, evaluation_facts, text_rows
from ppo_client.ppo.prompts import load_prompts
from ppo_client.ppo.run_logs import read_evaluations
from ppo_client.ppo.scores.connect import AWAY_ERRORS
from ppo_client.ppo.scores.reward_source import Advice, RewardDesk, parts_of
from ppo_client.ppo.scores.waiting import Patience

if TYPE_CHECKING:
    from ppo_client.ppo.evaluation import Evaluator

_EXAMPLES = """examples:
  ppo-client evaluate --policy runs/a/policy --reference examples/policy --prompts held_out.jsonl --reward story@1
  ppo-client evaluate --policy runs/a/best/policy --reference examples/policy --prompts openings.jsonl.gz \\
      --where split=held_out --reward story@1 --second story@2 --server localhost:50051 --json > runs/a.json
  ppo-client evaluate --policy runs/dpo/policy --like runs/a --server localhost:50051 --json > runs/dpo.json
  ppo-client report runs/a --compare runs/dpo.json
"""

_DEFAULTS: Mapping[str, Any] = {
    "reference": None,
    "prompts": None,
    "field": "prompt",
    "where": "",
    "count": None,
    "max_prompt_tokens": sys.maxsize,  # the models' own limits are checked afterwards
    "overlong": "refuse",
    "reward": None,
    "second": None,
    "calibrated": False,
    "input": "text",
    "prompt_template": "{prompt}",
    "truncation": None,
    "empty_score": None,
    "on_failed_item": "stop",
    "max_response_tokens": 64,
    "min_response_tokens": 1,
    "temperature": 1.0,
    "seed": 0,
}
"""What --like can give, and what holds where neither it nor an option does."""

_ADVICE = Advice(
    failed="What is too long can be cut (--truncation), and prompts with such a text can be left out "
    "(--on-failed-item drop)",
    unreadable="Give prompts of another kind (text, chat messages, token ids), or with --reward a model that reads "
    "these",
    empty="say with --empty-score what such a response is worth; with --min-response-tokens of 1 or more EOS cannot "
    "come first",
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="compare a policy with its reference",
        description="Policy and reference write to the same prompts by the same random numbers. Printed are mean "
        "scores, KL, lengths, distinct n-grams, and how often the second opinion (or the reward) prefers the policy.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", required=True, metavar="DIR", help="model directory, for example RUN/policy")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="RUN",
        help="as this run evaluates: its reference, prompts, lengths, seed, and the versions that scored its last "
        "evaluation; other options win over it",
    )
    given = parser.add_argument_group(
        "what --like gives, too", "--reference, --prompts and --reward are needed without it", argument_default=SUPPRESS
    )
    given.add_argument("--reference", metavar="DIR", help="what the policy is compared with")
    given.add_argument("--prompts", metavar="FILE", help="as data.prompts of a run: .jsonl, .json, .csv, .parquet")
    given.add_argument("--field", help="of the file's rows (default: prompt)")
    given.add_argument("--where", metavar="FIELD=VALUE", help="only rows that have this value")
    given.add_argument("--count", type=int, metavar="N", help="only the first N prompts")
    given.add_argument(
        "--max-prompt-tokens", type=int, metavar="N", help="longer prompts are handled as --overlong says"
    )
    given.add_argument("--overlong", choices=("refuse", "drop", "keep_end"), help="as data.overlong (default: refuse)")
    given.add_argument("--reward", metavar="SELECTOR", help="name, name@3 or name@label")
    given.add_argument("--second", metavar="SELECTOR", help="second opinion, which judges the win rate")
    given.add_argument(
        "--calibrated",
        action=argparse.BooleanOptionalAction,
        default=SUPPRESS,
        help="the reward's scores on its model's common scale",
    )
    given.add_argument("--input", choices=("text", "token_ids"), help="what is sent (default: text)")
    given.add_argument("--prompt-template", help="the reward model's view of a text prompt (default: {prompt})")
    given.add_argument(
        "--truncation",
        choices=("refuse", "keep_end", "keep_start"),
        help="of what is too long for a reward model (default: the version's rule)",
    )
    given.add_argument("--empty-score", type=float, metavar="SCORE", help="of responses without text, by either")
    given.add_argument(
        "--on-failed-item",
        choices=("stop", "drop"),
        help="where a text has no score, and asking again cannot help; drop: its prompt counts for nothing "
        "(default: stop)",
    )
    given.add_argument("--max-response-tokens", type=int, metavar="N", help="(default: 64)")
    given.add_argument("--min-response-tokens", type=int, metavar="N", help="(default: 1)")
    given.add_argument("--temperature", type=float, help="(default: 1.0)")
    given.add_argument("--seed", type=int, help="(default: 0)")
    parser.add_argument("--server", help="host:port, several with commas; default: RM_TARGET")
    parser.add_argument("--device", default="", help="such as cpu or cuda:1 (default: cuda where there is one)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--texts", type=int, default=5, metavar="N", help="pairs of texts in the JSON (default: 5)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.set_defaults(run=_run)


def _like(run: Path) -> dict[str, Any]:
    """The settings by which a run evaluates, as options of this command."""
    config = load_config(PPOConfig, run / "config.toml")
    if not config.evaluation.prompts:
        raise ConfigError(f"--like: {run} has no evaluations (evaluation.prompts) that could be repeated")
    parts, evaluations = parts_of(config.reward), read_evaluations(run)
    last: Mapping[str, Any] = evaluations[-1] if evaluations else {"versions": [], "judges": []}
    reward = {}
    if len(parts) == 1:
        reward = {"reward": _as_then(parts[0].model, last["versions"]), "calibrated": parts[0].calibrated}
    return reward | {
        "reference": config.policy.reference or config.policy.model,
        "prompts": config.evaluation.prompts,
        "field": config.data.field,
        "where": config.evaluation.where,
        "count": config.evaluation.count,
        "max_prompt_tokens": config.data.max_prompt_tokens,
        "overlong": config.data.overlong,
        "second": _as_then(config.evaluation.model, last["judges"]) or None,
        "input": config.reward.input,
        "prompt_template": config.reward.prompt_template,
        "truncation": config.reward.truncation or None,
        "empty_score": config.reward.empty_score,
        "on_failed_item": config.reward.on_failed_item,
        "max_response_tokens": config.rollout.max_response_tokens,
        "min_response_tokens": config.rollout.min_response_tokens,
        "temperature": config.rollout.temperature,
        "seed": config.train.seed,
    }


def _as_then(selector: str, names: Sequence[str]) -> str:
    """The version that a label or a bare name meant in an evaluation, by what scored it: to others, and by now, it may
    mean another one.
    """
    model, _, place = selector.partition("@")
    found = [name for name in names if name.partition("@")[0] == model]
    return found[0] if len(found) == 1 and not place.isdigit() else selector


def _run(args: argparse.Namespace) -> int:
    args = argparse.Namespace(**{**_DEFAULTS, **(_like(args.like) if args.like else {}), **vars(args)})
    if missing := [name for name in ("reference", "prompts", "reward") if getattr(args, name) is None]:
        raise ConfigError(f"--{missing[0]} is missing: name it, or with --like a run that has one and evaluates")
    counts = (args.batch_size, args.max_prompt_tokens, args.count)
    if min(count for count in counts if count is not None) < 1 or not 0 < args.temperature < math.inf:
        raise ConfigError("--batch-size, --max-prompt-tokens and --count must be at least 1, and --temperature above 0")
    if not 0 <= args.min_response_tokens <= args.max_response_tokens or args.max_response_tokens < 1:
        raise ConfigError("--max-response-tokens must be at least 1, and --min-response-tokens lie between 0 and that")
    if args.seed < 0:
        raise ConfigError("--seed must not be negative")
    if not math.isfinite(args.empty_score or 0):
        raise ConfigError("--empty-score must be a finite number")
    if "{prompt}" not in args.prompt_template:
        raise ConfigError('--prompt-template has no "{prompt}", so the reward model would not see the prompt')
    with RewardClient(args.server) as client:
        evaluator = _evaluator(client, args)
        pairs = evaluator.pairs(range(len(evaluator.prompts)))
    if not pairs:
        raise FailedItems("each of the prompts has a response without a score")
    if num_dropped := len(evaluator.prompts) - len(pairs):
        print(
            f"{num_dropped} of {len(evaluator.prompts)} prompts have a response without a score, and do not count",
            file=sys.stderr,
        )
    facts = evaluation_facts(pairs)
    if args.json:
        named = {"policy": str(Path(args.policy)), "reference": str(Path(args.reference))}
        conditions, texts = evaluator.conditions().to_dict(), text_rows(pairs, args.texts)
        found = {**named, **facts.to_dict(), "conditions": conditions, "texts": texts}
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        print(_table(facts))
    return 0


def _evaluator(client: RewardClient, args: argparse.Namespace) -> Evaluator:
    from ppo_client.ppo.evaluation import Evaluator
    from ppo_client.ppo.models.build import (
        check_fits,
        check_knows,
        chosen_device,
        load_policy,
        load_reference,
        load_tokenizer,
        policy_class,
        quiet_transformers,
    )

    quiet_transformers()
    device = chosen_device(args.device)
    tokenizer = load_tokenizer(args.policy)
    rollout = RolloutConfig(
        max_response_tokens=args.max_response_tokens,
        min_response_tokens=args.min_response_tokens,
        temperature=args.temperature,
    )
    policy = load_policy(args.policy, "float32", rollout, tokenizer).eval().to(device)
    if policy_class(args.reference) is not type(policy):
        raise ConfigError(f"--reference: {args.reference} is of another architecture than {args.policy}")
    reference = load_reference(args.reference, "float32", policy).eval().to(device)
    check_knows("--reference", reference.model, policy.model)
    data = DataConfig(args.prompts, args.field, args.where, args.max_prompt_tokens, args.overlong)
    reward = RewardConfig(prompt_template=args.prompt_template, input=args.input)
    prompts = load_prompts(data, reward, tokenizer, keeps_eos=not policy.continues_prompt)[: args.count]
    check_fits(policy, prompts, rollout.max_response_tokens, {"--reference": reference.model})
    # The client itself asks again, within its own deadline.
    patience = Patience(0.0, away_errors=AWAY_ERRORS, report=lambda text: print(text, file=sys.stderr))
    desk = RewardDesk(
        client,
        (RewardModelConfig(args.reward, calibrated=args.calibrated),),
        patience,
        args.truncation,
        drops_failed_items=args.on_failed_item == "drop",
        empty_score=args.empty_score,
        advice=_ADVICE,
    )
    judge = replace(desk, parts=(RewardModelConfig(args.second),)) if args.second else None
    return Evaluator(
        policy=policy,
        reference=reference,
        prompts=prompts,
        desk=desk,
        judge=judge,
        tokenizer=tokenizer,
        batch_size=args.batch_size,
        max_response_tokens=rollout.max_response_tokens,
        seed=args.seed,
        device=device,
    )


def _table(facts: EvaluationFacts) -> str:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    by, judged_by = ", ".join(facts.versions), ", ".join(facts.judges)
    rows = [
        ("", "policy", "reference"),
        (f"mean score by {by}", number(facts.score_mean), number(facts.reference_score_mean)),
        (f"mean score by {judged_by}", number(facts.judge_mean), number(facts.reference_judge_mean)),
        ("tokens per response", number(facts.response_tokens_mean), number(facts.reference_response_tokens_mean)),
        ("KL from the reference (nats per episode)", number(facts.kl), ""),
        ("responses without EOS (share)", number(facts.missing_eos_rate), ""),
        ("distinct words (share)", number(facts.distinct_1), ""),
        ("distinct word pairs (share)", number(facts.distinct_2), ""),
        ("repeated word triples within a text (share)", number(facts.repeated_3), ""),
        ("score and length (correlation)", number(facts.score_length_correlation), ""),
        ("score and second opinion (correlation)", number(facts.score_judge_correlation), ""),
    ]
    if facts.versions == facts.judges:
        del rows[2], rows[-1]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {ours:>9}  {theirs:>9}".rstrip() for name, ours, theirs in rows]
    lines.append(
        f"win rate of the policy by {judged_by}: {facts.win_rate:.3f} "
        f"(95 %: {facts.win_rate_low:.3f} to {facts.win_rate_high:.3f}; {facts.wins} wins, {facts.ties} ties, "
        f"{facts.losses} losses)"
    )
    return "\n".join(lines)
