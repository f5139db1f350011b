"""`ppo-client sft`."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ppo_client.ppo.config_file import load_config, override
from ppo_client.ppo.sft import SFTSettings, fine_tune

_EXAMPLES = """examples:
  ppo-client sft --model gpt2 --data stories.jsonl.gz --output policy
  ppo-client sft sft.toml --set learning_rate=1e-4 --set num_epochs=2
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sft",
        help="fine-tune a policy on texts before PPO",
        description="Supervised fine-tuning on texts, or on completions of prompts.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", type=Path, help="TOML file of settings")
    parser.add_argument("--model", help="directory of the checkpoint to start from")
    parser.add_argument("--data", help=".jsonl, .json, .csv or .parquet: rows with text, or prompt and completion")
    parser.add_argument("--output", help="directory of the fine-tuned model")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    named = [override(name, value) for name in ("model", "data", "output") if (value := getattr(args, name))]
    settings = load_config(SFTSettings, args.config, [*named, *args.set])
    with redirect_stdout(sys.stderr):  # transformers prints its log there
        metrics = fine_tune(settings)
    if args.json:
        print(json.dumps({"output": settings.output, **metrics}))
    else:
        print(f"wrote {settings.output}; mean loss {metrics['train_loss']:.4f}", file=sys.stderr)
    return 0
