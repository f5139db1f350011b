"""`ppo-client report`: one HTML page about a run, or its numbers alone."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ppo_client.ppo.conditions import changes_over, differences
from ppo_client.ppo.report import write_report
from ppo_client.ppo.run_facts import evaluation_signs, run_facts, signs
from ppo_client.ppo.run_logs import comparison, read_evaluations, read_logs

_EXAMPLES = """examples:
  ppo-client report runs/a                     writes runs/a/report.html
  ppo-client report runs/a --output a.html
  ppo-client report runs/a --compare runs/b runs/dpo.json
                                               beside other runs, and what `ppo-client evaluate --json` wrote
  ppo-client report runs/a --json              the numbers alone
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="an HTML page about a run",
        description="Curves, texts before and after, and what to doubt, from a run's logs; also while it goes on.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_directory", type=Path, help="output directory of the run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the run's directory")
    parser.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        default=[],
        metavar="PLACE",
        help="other runs that were evaluated, or files of `ppo-client evaluate --json`: one row each in a table",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, and write no page")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.json:
        rows, samples = read_logs(args.run_directory)
        evaluations = read_evaluations(args.run_directory)
        all_signs = [*signs(samples), *evaluation_signs(evaluations)]
        found = [{"name": sign.name, "first": sign.first, "last": sign.last} for sign in all_signs]
        compared = comparison([args.run_directory, *args.compare]) if evaluations or args.compare else []
        for row in compared:
            row.pop("texts", None)
        beside = {
            "evaluation_changes": changes_over(evaluations),
            "compared": compared,
            "differences": differences(compared),
        }
        print(json.dumps({**run_facts(rows).to_dict(), "signs": found, **beside}, indent=2))
        return 0
    page = args.output or args.run_directory / "report.html"
    write_report(args.run_directory, page, args.compare)
    print(f"wrote {page}", file=sys.stderr)
    return 0
