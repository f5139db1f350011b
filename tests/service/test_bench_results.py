"""What the benchmarks write down: figures against their targets, and nothing that was not measured."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from bench.__main__ import QUESTIONS
from bench.results import TARGETS, Results, read

MACHINE = {"cores": 2}
TARGETS_HERE = {"speed": ("≥", 2.0), "wait": ("≤", 1.0)}


def test_a_page_says_of_each_figure_whether_it_is_as_wanted_or_not_measured() -> None:
    results = Results(MACHINE, TARGETS_HERE)
    results.replace("fast", [{"round": 0}], {"speed": 2.5, "price": 1.4}, 3.0)
    page = results.page()
    assert "| speed | 2.5 | ≥ 2 | yes |" in page
    assert "| wait | not measured | ≤ 1 |  |" in page
    assert "| price | 1.4 |  |  |" in page
    results.replace("fast", [], {"speed": 1.5}, 3.0)
    assert "| speed | 1.5 | ≥ 2 | no |" in results.page()
    assert results.missed() == ["speed"]


def test_a_question_that_is_asked_again_replaces_what_it_had_said_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = Results(MACHINE, TARGETS_HERE)
    results.replace("fast", [{"round": 0}, {"round": 1}], {"speed": 2.5, "price": 1.4})
    results.replace("patient", [{"round": 0}], {"wait": 0.5})
    results.write(path)
    again = read(path, MACHINE, TARGETS_HERE)
    again.replace("fast", [{"round": 7}], {"price": 1.3})
    again.write(path)
    written = json.loads(path.read_text())
    # Its old speed is no longer known: the last try did not give any.
    assert written["figures"] == {"wait": 0.5, "price": 1.3}
    assert written["rows"] == [{"question": "patient", "round": 0}, {"question": "fast", "round": 7}]
    assert read(path, {"cores": 64}, TARGETS_HERE).rows == []


def test_all_questions_together_are_planned_to_take_less_than_15_minutes() -> None:
    planned_s = {name: import_module(f"bench.questions.{name}").PLANNED_S for name in QUESTIONS}
    assert sum(planned_s.values()) <= 14.5 * 60, planned_s  # half a minute to start with
    assert import_module("bench.questions.peers").PLANNED_S <= 80 * 60


def test_every_figure_that_is_promised_has_a_target() -> None:
    promised = """service_over_ceiling service_over_best_peer_fp32 service_over_best_peer_bf16
        service_over_litserve_with_our_backend single_item_p50_over_bare_forward overhead_p50_ms
        shared_prompt_speedup_over_token_ratio random_over_sorted light_run_wait_batches fifo_over_fair_p95 jain_index
        overload_goodput overload_refusal_p99_ms health_p99_ms memory_growth"""
    assert set(promised.split()) <= set(TARGETS)
