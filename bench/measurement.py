"""What the questions share: how long to measure, and where rows and figures go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.load import Answer, Call, throughput
from bench.models import Model
from bench.results import Row, num_cores, table
from bench.service import score_request
from bench.statistics import percentile
from bench.workload import Item, in_calls, items


@dataclass
class Bench:
    """One run of one question. ``quick``: a smoke test; its figures mean nothing."""

    quick: bool = False
    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def cores(self) -> int:
        """Cores to use. One in a smoke test: two threads that wait for each other crawl where others compute, too."""
        return 1 if self.quick else num_cores()

    @property
    def rounds(self) -> int:
        """How often all arms are measured, one after the other."""
        return 1 if self.quick else 3

    def seconds(self, normal: float) -> float:
        """How long to measure."""
        return min(2.0, normal) if self.quick else normal

    def callers(self, normal: int) -> int:
        """How many callers ask."""
        return min(2, normal) if self.quick else normal

    @property
    def warm_up_s(self) -> float:
        """How long callers run before answers count."""
        return 0.5 if self.quick else 1.5

    def row(self, **cells: Any) -> None:
        """Keeps a row and prints it."""
        self.rows.append(cells)
        print("  " + "  ".join(f"{name}={_short(value)}" for name, value in cells.items()), flush=True)

    def figure(self, name: str, value: float) -> None:
        """Keeps a figure and prints it."""
        self.figures[name] = float(value)
        print(f"  {name} = {value:.4g}", flush=True)

    def print_table(self) -> None:
        """All rows."""
        print(table(self.rows), flush=True)


def make_calls(selector: str, call_items: list[list[Item]], run: str = "", *, use_cache: bool = False) -> list[Call]:
    """Requests, each ready to be sent."""
    return [
        Call(score_request(selector, part, run, use_cache=use_cache), len(part), sum(item.num_tokens for item in part))
        for part in call_items
    ]


def for_callers(
    model: Model, selector: str, *, callers: int, items_per_call: int, seed: int = 1, run: str = ""
) -> list[list[Call]]:
    """For each caller some calls of strangers; callers have different ones."""
    num_calls = max(2, min(32, 512 // items_per_call))
    found = items(model.vocabulary, callers * num_calls * items_per_call, seed)
    calls = make_calls(selector, in_calls(found, items_per_call), run)
    return [calls[number::callers] for number in range(callers)]


def speed(answers: list[Answer]) -> Row:
    """The cells that tell of a closed loop's speed."""
    done = throughput(answers)
    return {
        "tokens_per_s": round(done.tokens_per_s, 1),
        "items_per_s": round(done.items_per_s, 2),
        "calls": len(done.latencies_s),
        "p50_ms": round(1000 * percentile(done.latencies_s, 0.5), 2),
        "p99_ms": round(1000 * percentile(done.latencies_s, 0.99), 2),
    }


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
