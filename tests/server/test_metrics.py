"""Names, units and labels of the metrics, as a scraper sees them."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rm_server.metrics import Metrics
from rm_server.metrics.versions import KEEP_UNLOADED_S

KEY = ("helpfulness", 3)


def load(metrics: Metrics) -> None:
    metrics.version_loaded(KEY, digest="ab" * 32, precision="fp32", memory_bytes=1 << 20, load_seconds=1.5)


def everything_happened(clock: Callable[[], float] = time.monotonic) -> Metrics:
    metrics = Metrics(clock)
    metrics.request_started()
    metrics.request_finished("Score", KEY, "ok", 0.004)
    metrics.request_started()
    metrics.request_finished("Score", None, "model_not_found", 0.0002)
    metrics.items_finished(KEY, "ok", 7)
    metrics.items_finished(KEY, "item_too_long", 1)
    metrics.tokens_scored(KEY, 700, 2)
    metrics.tokenized(KEY, 0.001)
    metrics.queue_waited(KEY, 0.0003)
    metrics.batch_computed(KEY, 8, 700, 0.02)
    metrics.queue_changed(5, 444)
    metrics.item_dropped(KEY, "deadline_exceeded")
    metrics.worker_restarted()
    metrics.cache_asked(KEY, 3, 5)
    load(metrics)
    metrics.load_failed(("helpfulness", 4), "weights_mismatch")
    metrics.label_moved("helpfulness")
    metrics.lease_given(KEY, None)
    metrics.runs_counted(
        leases={KEY: 2},
        leases_over={("helpfulness", "expired"): 1},
        active={KEY: 3},
        largest_share={"helpfulness": 0.5},
    )
    metrics.ready(True)
    metrics.home_free(1 << 30)
    metrics.draining(False)
    metrics.catalog_reachable(True)
    metrics.loop_lagged(0.0001)
    return metrics


def scrape(metrics: Metrics) -> str:
    metrics.forget_long_unloaded()
    return metrics.exposition("text/plain")[0].decode()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_counts_what_happened() -> None:
    metrics = everything_happened()
    assert value(metrics, "rm_requests_total", method="Score", model="helpfulness", version="3", reason="ok") == 1
    assert value(metrics, "rm_requests_total", method="Score", model="", version="", reason="model_not_found") == 1
    assert value(metrics, "rm_requests_in_flight") == 0
    assert value(metrics, "rm_items_total", model="helpfulness", version="3", reason="ok") == 7
    assert value(metrics, "rm_tokens_total", model="helpfulness", version="3") == 700
    assert value(metrics, "rm_truncated_items_total", model="helpfulness", version="3") == 2
    assert value(metrics, "rm_batch_tokens_sum", model="helpfulness", version="3") == 700
    assert value(metrics, "rm_queue_tokens") == 444
    assert value(metrics, "rm_cache_hits_total", model="helpfulness", version="3") == 3
    assert value(metrics, "rm_loads_total", model="helpfulness", reason="weights_mismatch") == 1


def test_a_version_that_is_unloaded_leaves_no_gauge_behind() -> None:
    metrics = everything_happened()
    labels = {"model": "helpfulness", "version": "3"}
    assert value(metrics, "rm_version_memory_bytes", **labels) == 1 << 20
    assert value(metrics, "rm_version_loaded_info", **labels, digest="ab" * 32, precision="fp32") == 1
    metrics.version_unloaded(KEY)
    assert value(metrics, "rm_version_memory_bytes", **labels) is None
    assert value(metrics, "rm_version_loaded_info", **labels, digest="ab" * 32, precision="fp32") is None
    assert value(metrics, "rm_unloads_total", model="helpfulness") == 1


def test_a_version_that_is_deleted_leaves_nothing_behind_and_may_come_again() -> None:
    metrics = everything_happened()
    metrics.shadow_agreement(KEY, 0.9, 0.1)
    metrics.recent_scores(KEY, 0.5, 1.0, 0.1)
    metrics.items_finished(("helpfulness", 33), "ok", 1)
    metrics.version_unloaded(KEY)
    metrics.version_forgotten(KEY)
    assert 'version="3"' not in scrape(metrics)
    assert value(metrics, "rm_items_total", model="helpfulness", version="33", reason="ok") == 1
    assert value(metrics, "rm_requests_total", method="Score", model="", version="", reason="model_not_found") == 1
    metrics.items_finished(KEY, "ok", 2)
    assert value(metrics, "rm_items_total", model="helpfulness", version="3", reason="ok") == 2


def test_a_version_without_a_calibration_any_more_has_no_mean_on_the_common_scale() -> None:
    metrics = Metrics()
    labels = {"model": "helpfulness", "version": "3"}
    metrics.recent_scores(KEY, 0.5, 1.0, 0.1)
    assert value(metrics, "rm_score_calibrated_mean", **labels) == 0.1
    metrics.recent_scores(KEY, 0.6, 1.0, None)
    assert value(metrics, "rm_score_calibrated_mean", **labels) is None
    assert value(metrics, "rm_score_mean", **labels) == 0.6


def test_a_version_that_stays_unloaded_leaves_its_counts_for_an_hour() -> None:
    now = 0.0
    metrics = everything_happened(clock=lambda: now)
    metrics.version_unloaded(KEY)
    now = KEEP_UNLOADED_S - 1
    assert 'rm_items_total{model="helpfulness",reason="ok",version="3"} 7.0' in scrape(metrics)
    now = KEEP_UNLOADED_S
    assert 'version="3"' not in scrape(metrics)
    assert 'rm_unloads_total{model="helpfulness"} 1.0' in scrape(metrics)


def test_a_version_that_came_back_in_time_counts_on() -> None:
    now = 0.0
    metrics = everything_happened(clock=lambda: now)
    metrics.version_unloaded(KEY)
    now = KEEP_UNLOADED_S - 1
    load(metrics)
    now = 3 * KEEP_UNLOADED_S
    assert 'rm_items_total{model="helpfulness",reason="ok",version="3"} 7.0' in scrape(metrics)


def test_says_how_many_versions_are_missing_by_state() -> None:
    metrics = Metrics()
    metrics.versions_missing({"FAILED": 2})
    assert value(metrics, "rm_versions_missing", state="FAILED") == 2
    metrics.versions_missing({"LOADING": 1})
    assert value(metrics, "rm_versions_missing", state="FAILED") == 0
    assert value(metrics, "rm_versions_missing", state="LOADING") == 1


def test_says_how_many_runs_there_are_and_forgets_those_that_are_gone() -> None:
    metrics = everything_happened()
    labels = {"model": "helpfulness", "version": "3"}
    assert value(metrics, "rm_leases", **labels) == 2
    assert value(metrics, "rm_runs_active", **labels) == 3
    assert value(metrics, "rm_leases_over", model="helpfulness", outcome="expired") == 1
    assert value(metrics, "rm_run_largest_token_share", model="helpfulness") == 0.5
    metrics.runs_counted(leases={("helpfulness", 4): 2}, leases_over={}, active={}, largest_share={})
    assert value(metrics, "rm_leases", model="helpfulness", version="4") == 2
    gone = r'rm_(leases|runs_active){.*version="3"|rm_leases_over{|rm_run_largest_token_share{'
    assert not re.search(gone, scrape(metrics))


def test_two_servers_fit_in_one_process() -> None:
    first, second = Metrics(), Metrics()
    first.label_moved("helpfulness")
    assert value(second, "rm_label_moves_total", model="helpfulness") is None


def test_names_have_the_prefix_and_the_unit_and_no_run() -> None:
    for family in text_string_to_metric_families(scrape(everything_happened())):
        if family.name.startswith(("process_", "python_")):
            continue
        assert re.fullmatch(r"rm_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        labels = {label for sample in family.samples for label in sample.labels}
        assert not labels & {"run", "request_id"}
        assert not re.search(r"_(ms|us|millis|milliseconds|mb|kb)$", family.name)


def test_speaks_open_metrics_when_asked() -> None:
    text, content_type = everything_happened().exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed")
def test_promtool_finds_nothing_to_say() -> None:
    lint = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape(everything_happened()), capture_output=True, text=True
    )
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")
