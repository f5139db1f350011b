"""What was measured: raw rows, the figures made of them, the machine; as JSON and as tables for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]

TARGETS: Mapping[str, tuple[str, float]] = {
    "service_over_ceiling": ("≥", 0.92),
    "service_over_best_peer_fp32": ("≥", 3.0),
    "service_over_best_peer_bf16": ("≥", 2.0),
    "service_over_litserve_with_our_backend": ("≥", 1.0),
    "single_item_p50_over_bare_forward": ("≤", 1.0),
    "overhead_p50_ms": ("≤", 0.7),
    "shared_prompt_speedup_over_token_ratio": ("≥", 0.9),
    "shared_prompt_score_difference": ("≤", 1e-5),
    "random_over_sorted": ("≥", 0.95),
    "light_run_wait_batches": ("≤", 2.0),
    "fifo_over_fair_p95": ("≥", 5.0),
    "jain_index": ("≥", 0.95),
    "overload_goodput": ("≥", 0.9),
    "overload_refusal_p99_ms": ("≤", 50.0),
    "health_p99_ms": ("≤", 20.0),
    "memory_growth": ("≤", 0.05),
    "shadow_p50_ratio": ("≤", 1.05),
}
"""What each figure of the benchmarks is wanted to be."""

GPU_TARGETS: Mapping[str, tuple[str, float]] = {
    "gpu_service_over_matmul": ("≥", 0.6),
    "gpu_service_over_transformers_padded": ("≥", 2.0),
    "gpu_single_item_p50_over_bare_forward": ("≤", 1.3),
}
"""What each figure of the benchmarks on a GPU is wanted to be."""

STORM_TARGETS: Mapping[str, tuple[str, float]] = {
    "requests": ("≥", 32 * 1024),
    "failed": ("≤", 0),
    "misversioned": ("≤", 0),
    "leases_broken": ("≤", 0),
    "p99_swap_over_steady": ("≤", 1.5),
    "load_cycles": ("≥", 500),
    "memory_growth_mb": ("≤", 100),
    "kills": ("≥", 50),
    "kills_inconsistent": ("≤", 0),
    "replica_failed": ("≤", 0),
    "converge_s": ("≤", 2),
}
"""What each figure of the storms is wanted to be."""


@dataclass
class Results:
    """Rows and figures by question. A question that is measured again replaces what it had said before."""

    machine: dict[str, Any]
    targets: Mapping[str, tuple[str, float]] = field(default_factory=lambda: TARGETS)
    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each question when it was asked, how long that took and which figures it gave."""

    def replace(self, question: str, rows: Sequence[Row], figures: Mapping[str, float], seconds: float = 0.0) -> None:
        """Takes what a question found now, in ``seconds`` (0: unknown); a figure that it found no more is forgotten."""
        self.rows = [row for row in self.rows if row["question"] != question]
        self.rows += [{"question": question, **row} for row in rows]
        for name in self.measured.get(question, {}).get("figures", ()):
            self.figures.pop(name, None)
        self.figures.update(figures)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.measured[question] = {"at": at, "seconds": seconds, "figures": list(figures)}

    def missed(self) -> list[str]:
        """The figures that are not as wanted."""
        known = ((name, self.figures[name], *wanted) for name, wanted in self.targets.items() if name in self.figures)
        return [name for name, figure, sign, bound in known if not _is_met(figure, sign, bound)]

    def write(self, path: Path) -> None:
        """JSON, a row a line, and a page of tables beside it."""
        rows = ",\n".join("  " + json.dumps(row) for row in self.rows)
        figures = {name: self.figures[name] for name in self._names() if name in self.figures}
        head = {"machine": self.machine, "measured": self.measured, "figures": figures}
        body = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{body},\n "rows": [\n{rows}\n]\n}}\n', encoding="utf-8")
        path.with_suffix(".md").write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        """The figures against what is wanted, then the rows of each question."""
        parts = ["# What was measured", ", ".join(f"{name} {value}" for name, value in self.machine.items()) + "."]
        parts.append(table([self._verdict(name) for name in self._names()]))
        for question in self.measured:
            rows = [row for row in self.rows if row["question"] == question]
            asked = self.measured[question]
            took = f", in {asked['seconds']:.0f} s" if asked["seconds"] else ""
            head = f"## {question}\n\nMeasured {asked['at']}{took}."
            parts.append(f"{head}\n\n{table(_without_question(rows))}")
        return "\n\n".join(parts) + "\n"

    def _names(self) -> list[str]:
        """All figures: those that have a target, measured or not, then those that have none."""
        return list(dict.fromkeys([*self.targets, *self.figures]))

    def _verdict(self, name: str) -> Row:
        """What was measured, what is wanted, and whether that is so."""
        row: Row = {"figure": name, "measured": self.figures.get(name, "not measured"), "wanted": "", "met": ""}
        if name in self.targets:
            sign, bound = self.targets[name]
            row["wanted"] = f"{sign} {bound:g}"
            if name in self.figures:
                row["met"] = "yes" if _is_met(self.figures[name], sign, bound) else "no"
        return row


def read(path: Path, machine: dict[str, Any], targets: Mapping[str, tuple[str, float]] = TARGETS) -> Results:
    """What stands in the file; nothing where there is none, or where it comes from another kind of machine."""
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["machine"] == machine:
            return Results(machine, targets, found["rows"], found["figures"], found["measured"])
    return Results(machine, targets)


def describe_machine() -> dict[str, Any]:
    """What speed depends on, and nothing that tells which machine it was."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        cpu = " ".join([cpu, *(flag for flag in wanted if flag in flags)])
    return {
        "cores": num_cores(),
        "cpu": cpu,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def table(rows: Sequence[Row]) -> str:
    """Markdown; a column for each key that any row has."""
    if not rows:
        return "Nothing."
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _is_met(figure: float, sign: str, bound: float) -> bool:
    return figure >= bound if sign == "≥" else figure <= bound


def _without_question(rows: Sequence[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "question"} for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
