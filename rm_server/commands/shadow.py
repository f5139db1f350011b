"""`rm-server shadow set, list, remove, report`: a version that also scores live traffic, and how it compares."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rm_server.commands.common import (
    CommandError,
    Row,
    add_json_option,
    add_parser,
    add_reason_option,
    print_json,
    print_table,
    printable,
    short_time,
    version_number,
    write_text,
)
from rm_server.commands.target import add_target_command, open_server_or_home, opened_home

SHOWN_WORST = 5

_HELP = """\
A shadow scores a share of its model's traffic, too, beside the version that callers get. Its scores are compared with
theirs and never returned.
"""

_EXAMPLES = """\
examples:
  rm-server shadow set helpfulness 3 --share 0.1 --load --reason "twice the data"
  rm-server shadow report helpfulness 3 --html shadow.html
  rm-server shadow remove helpfulness 3
"""


def add_parsers(commands: Any) -> None:
    """Adds the commands of this file."""
    group = add_parser(commands, "shadow", "lets a version score live traffic, too, and compares it", _HELP, _EXAMPLES)
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)

    parser = add_target_command(
        actions, "set", run_set, "lets a version shadow its model", "rm-server shadow set helpfulness 3"
    )
    _add_version(parser)
    parser.add_argument("--share", type=float, default=0.1, help="of the model's calls, up to 1 (default: 0.1)")
    parser.add_argument("--load", action="store_true", help="loads the version first, if it is not loaded")
    add_reason_option(parser)

    parser = add_target_command(actions, "list", run_list, "the versions that shadow", "rm-server shadow list --json")
    parser.add_argument("model", nargs="?", default="", help="only this one's")
    add_json_option(parser)

    parser = add_target_command(actions, "remove", run_remove, "ends a shadow", "rm-server shadow remove helpfulness 3")
    _add_version(parser)
    add_reason_option(parser)

    parser = add_target_command(
        actions,
        "report",
        run_report,
        "how a shadow's scores compare with those that callers got",
        "rm-server shadow report helpfulness 3 --html report.html",
    )
    _add_version(parser)
    parser.add_argument(
        "--against", type=version_number, metavar="N", help="the version that callers got (default: most often)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="writes a page with plots")
    parser.add_argument("--pairs", type=Path, metavar="FILE.jsonl", help="writes the pairs; needs --home")
    add_json_option(parser)


def run_set(arguments: argparse.Namespace) -> int:
    """Waits until the version is loaded, where it is to be."""
    with open_server_or_home(arguments) as target:
        shadow = target.set_shadow(
            arguments.model, arguments.version, arguments.share, load=arguments.load, comment=arguments.comment
        )
    print(f"{_name(shadow)} scores {100 * shadow['share']:.4g} % of the calls of {shadow['model']}, too.")
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """A row a shadow."""
    with open_server_or_home(arguments) as target:
        shadows = target.shadows(arguments.model)
    if arguments.json:
        print_json(shadows)
        return 0
    print_table(
        shadows,
        (
            ("MODEL", lambda row: row["model"]),
            ("VERSION", lambda row: row["version"]),
            ("SHARE", lambda row: row["share"]),
            ("SINCE", lambda row: short_time(row["create_time"])),
        ),
        empty="No version shadows.",
    )
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """What was compared stays."""
    with open_server_or_home(arguments) as target:
        target.remove_shadow(arguments.model, arguments.version, comment=arguments.comment)
    print(f"{arguments.model}@{arguments.version} shadows no longer; its report stays.")
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """A summary, or JSON; a page and the pairs where they are asked for."""
    if arguments.pairs and arguments.home is None:
        raise CommandError("--pairs needs --home: the pairs are read from the catalog itself.")
    with open_server_or_home(arguments) as target:
        report = target.shadow_report(arguments.model, arguments.version, arguments.against)
    if arguments.json:
        print_json(report)
    if not report["num_pairs"]:
        if arguments.json and not (arguments.html or arguments.pairs):
            return 0
        raise CommandError(_nothing_yet(report, arguments.against))
    if arguments.html:
        from rm_server.commands.shadow_page import page

        write_text(arguments.html, page(report))
    if arguments.pairs:
        write_text(arguments.pairs, "".join(_pair_lines(arguments, report["version"])))
    if not arguments.json:
        print("\n".join(_lines(report)))
    return 0


def _nothing_yet(report: Row, against: int | None) -> str:
    shadow = f"{report['model']}@{report['shadow_version']}"
    if others := report["pairs_by_version"]:
        return f"{shadow} was not compared with version {against}, but with {', '.join(others)}."
    hint = "wait for calls" if "share" in report else "`rm-server shadow set` lets it shadow"
    return f"{shadow} has not been compared yet: {hint}."


def _lines(report: Row) -> Iterator[str]:
    found = report["agreement"]
    yield (
        f"{report['model']}@{report['shadow_version']} (shadow) against version {report['version']}: "
        f"{found['num_pairs']} completions of {found['num_groups']} prompts, "
        f"{short_time(report['first_time'])} to {short_time(report['last_time'])}"
    )
    yield ""
    rows = list(figures(report))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, meaning in rows:
        yield f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {meaning}"
    if report["worst"]:
        yield from ("", "furthest apart, shift and scale removed:")
    for row in report["worst"][:SHOWN_WORST]:
        yield f"  {row['score']:.4g} → {row['shadow_score']:.4g} ({row['apart_std']:+.2f})  {_short(row)}".rstrip()


def figures(report: Row) -> Iterator[tuple[str, str, str]]:
    """Name, value with its interval, and meaning of each figure of a report."""
    found = report["agreement"]
    yield "mean", f"{found['score_mean']:.4g} → {found['shadow_mean']:.4g}", "raw scores"
    in_std = f", {found['shift_std']:+.3f} standard deviations" if "shift_std" in found else ""
    yield "shift", _estimate(found, "shift"), f"mean of shadow minus score{in_std}"
    yield "scale", _estimate(found, "scale"), "standard deviation of the shadow over that of the score"
    yield "Pearson", _estimate(found, "pearson"), "linear correlation"
    yield "Spearman", _estimate(found, "spearman"), "rank correlation"
    if "within_groups" in found:
        yield "within prompts", _estimate(found, "within_groups"), "rank correlation of completions of one prompt"
    yield "Kendall", _number(found.get("kendall")), "tau-b: how much likelier a pair is ordered alike than not"
    if "flips" in found:
        flips = found["flips"]
        share = flips["share"]
        low, high = share["interval"]
        yield (
            "flips",
            f"{share['value']:.1%} [{low:.1%}, {high:.1%}]",
            f"of {flips['num_groups']} prompts with several completions, another is best; of more completions oftener",
        )
    yield (
        "Kolmogorov–Smirnov",
        f"{found['ks_statistic']:.4g} (p {found['ks_p_value']:.2g})",
        "largest distance of the distributions; p as if the samples were independent",
    )


def _estimate(found: Row, name: str) -> str:
    if name not in found:
        return "undefined"
    interval = found[name].get("interval")
    value = _number(found[name]["value"])
    return value if interval is None else f"{value} [{_number(interval[0])}, {_number(interval[1])}]"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _short(row: Row) -> str:
    text = printable(str(row.get("completion", ""))[:81])
    return text if len(text) <= 80 else text[:79] + "…"


def _pair_lines(arguments: argparse.Namespace, version: int) -> Iterator[str]:
    from rm_server.registry.shadows import pairs_of

    with opened_home(arguments) as (catalog, _):
        pairs, _ = pairs_of(catalog, arguments.model, arguments.version, version)
    for pair in pairs:
        yield json.dumps(asdict(pair) | {"time": pair.time.isoformat()}, ensure_ascii=False) + "\n"


def _name(shadow: Row) -> str:
    return f"{shadow['model']}@{shadow['version']}"


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("version", type=version_number, help="the shadow")
