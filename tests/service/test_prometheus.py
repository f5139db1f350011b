"""What deploy/ asks Prometheus for is there: real metrics pass promtool, rules are tested, names and queries exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import RULES
from rm_api.v1 import experiments_pb2, models_pb2
from running_server import RunningServer, make_rules_version, running, score_request
from waiting import wait_until

from rm_server.metrics import Metrics

DEPLOY = RULES.parent
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
FROM_PROMETHEUS = {"up", "ALERTS"}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def promtool(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has scored, failed, refused, shadowed, loaded and unloaded."""
    root = tmp_path_factory.mktemp("busy")
    rules = [{"type": "length", "unit": "words", "min": 0, "max": number} for number in (3, 5, 7)]
    folders = [make_rules_version(root / f"v{number}", rule) for number, rule in enumerate(rules)]
    with running(root / "home") as server:
        server.deploy("m", *folders)
        shadow = experiments_pb2.Shadow(model="m", version=2, share=1.0)
        server.experiments.SetShadow(experiments_pb2.SetShadowRequest(shadow=shadow))
        for number in range(5):
            server.score("m@stable", "one two three four", f"text {number}")
        server.scoring.Score(score_request("m", "one two", run="exp-1"))
        for wrong in ("nobody", "not a selector@@", "m@9"):
            with pytest.raises(grpc.RpcError):
                server.scoring.Score(score_request(wrong, "text"))
        server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="m@3"))
        yield server


def test_a_name_that_somebody_makes_up_is_no_label_of_a_metric(busy: RunningServer) -> None:
    models, experiments = busy.models, busy.experiments
    shadow = experiments_pb2.Shadow(model="ghost", version=77, share=1.0)
    pin = experiments_pb2.Pin(model="ghost", version=77, run="exp-1")
    refused = [
        lambda: models.SetLabel(models_pb2.SetLabelRequest(model="ghost", label="stable", version=77)),
        lambda: models.RemoveLabel(models_pb2.RemoveLabelRequest(model="ghost", label="stable")),
        lambda: models.RollbackLabel(models_pb2.RollbackLabelRequest(model="ghost")),
        lambda: models.PromoteVersion(models_pb2.PromoteVersionRequest(model="ghost", version=77)),
        lambda: models.GetVersion(models_pb2.GetVersionRequest(selector="ghost@77")),
        lambda: models.LoadVersion(models_pb2.LoadVersionRequest(selector="m@77")),
        lambda: models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="m@77")),
        lambda: models.DeleteVersion(models_pb2.DeleteVersionRequest(model="m", version=77)),
        lambda: models.SetLabel(models_pb2.SetLabelRequest(model="m", label="stable", version=77)),
        lambda: models.PromoteVersion(models_pb2.PromoteVersionRequest(model="m", version=77)),
        lambda: experiments.SetShadow(experiments_pb2.SetShadowRequest(shadow=shadow)),
        lambda: experiments.SetPin(experiments_pb2.SetPinRequest(pin=pin)),
        lambda: experiments.GetShadowReport(experiments_pb2.GetShadowReportRequest(model="ghost", version=77)),
    ]
    for call in refused:
        with pytest.raises(grpc.RpcError) as refusal:
            call()
        assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    assert not re.search(r'"ghost"|version="77"', scrape(busy))


def test_a_version_that_is_deleted_is_no_label_any_more(busy: RunningServer, tmp_path: Path) -> None:
    for number in (1, 2):
        rule = {"type": "length", "unit": "words", "min": 0, "max": number}
        busy.deploy("nightly", make_rules_version(tmp_path / str(number), rule), label=None)
        busy.score(f"nightly@{number}", "one two three")
    assert 'model="nightly",reason="ok",version="1"' in scrape(busy)
    busy.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="nightly@1"))
    busy.models.DeleteVersion(models_pb2.DeleteVersionRequest(model="nightly", version=1))
    assert not re.search('model="nightly".*version="1"', scrape(busy))
    assert re.search('model="nightly".*version="2"', scrape(busy))


def test_a_server_that_starts_knows_the_runs_that_there_are(tmp_path: Path) -> None:
    rule = {"type": "length", "unit": "words", "min": 0, "max": 3}
    with running(tmp_path / "home") as server:
        server.deploy("m", make_rules_version(tmp_path / "v", rule))
        server.scoring.Score(score_request("m", "one two", run="exp-1"))
    of_version = {"model": "m", "version": "1"}
    with running(tmp_path / "home") as server:
        value = server.app.metrics.registry.get_sample_value
        wait_until(lambda: value("rm_leases", of_version) == 1, "one lease on m@1", lambda: scrape(server))
        assert value("rm_runs_active", of_version) == 1
        assert value("rm_run_largest_token_share", {"model": "m"}) == 1


def scrape(server: RunningServer) -> str:
    return server.app.metrics.exposition("text/plain")[0].decode()


def test_calls_are_answered_while_a_scrape_is_written(busy: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, may_end, write = threading.Event(), threading.Event(), busy.app.metrics.exposition

    def write_slowly(accept: str) -> tuple[bytes, str]:
        has_begun.set()
        assert may_end.wait(30)
        return write(accept)

    monkeypatch.setattr(busy.app.metrics, "exposition", write_slowly)
    with ThreadPoolExecutor(1) as thread:
        scraping = thread.submit(urlopen, f"http://{busy.app.http_address}/metrics", timeout=60)
        assert has_begun.wait(30)
        try:
            busy.score("m@stable", "one two three four", timeout=10)
        finally:
            may_end.set()
        with scraping.result() as response:
            assert b"rm_requests_total" in response.read()


@needs_promtool
def test_promtool_has_nothing_to_say_about_the_metrics_of_a_busy_server(busy: RunningServer) -> None:
    text = scrape(busy)
    assert {"rm_requests_total", "rm_shadow_items_total", "rm_unloads_total", "rm_queue_wait_seconds_bucket"} <= {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }
    lint = promtool("check", "metrics", input=text)
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")


@needs_promtool
def test_the_configuration_and_its_rules_are_right() -> None:
    check = promtool("check", "config", "prometheus.yml", cwd=RULES)
    assert check.returncode == 0, check.stdout + check.stderr
    rules = promtool("check", "rules", "recording.yml", "alerts.yml", cwd=RULES)
    assert rules.returncode == 0, rules.stdout + rules.stderr


@needs_promtool
def test_each_alert_does_what_its_test_says() -> None:
    done = promtool("test", "rules", "alerts_test.yml", cwd=RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_that_it_fires() -> None:
    tests = yaml.safe_load((RULES / "alerts_test.yml").read_text())["tests"]
    expected = [check for test in tests for check in test["promql_expr_test"] if check.get("exp_samples")]
    fires = {match.group(1) for check in expected if (match := re.search(r'alertname="(\w+)"', check["expr"]))}
    assert fires == {rule["alert"] for rule in rules_of("alerts.yml")}


def test_each_alert_says_what_it_is_and_what_to_do() -> None:
    for rule in rules_of("alerts.yml"):
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule
        assert rule["annotations"].keys() == {"summary", "description"}, rule


def rules_of(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def known_names() -> set[str]:
    """The names of all samples that a server or a rule can have."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    names = {
        family.name + suffix for family in Metrics().registry.collect() for suffix in suffixes.get(family.type, ("",))
    }
    return names | {rule["record"] for rule in rules_of("recording.yml")} | FROM_PROMETHEUS


def metric_names(expression: str) -> set[str]:
    """The metrics in an expression: what stands before `{`, `[` or an operator and is no function and no label."""
    without_labels = re.sub(r"\b(by|on|without|ignoring|group_left|group_right) *\([^)]*\)", "", expression)
    without_labels = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", without_labels)
    words = re.findall(r"(?<![\w.:$])[a-zA-Z_][\w:]*(?! *\()\b(?! *\()", without_labels)
    return set(words) - {"and", "or", "unless", "offset", "bool", "m"}


def dashboard_queries() -> list[tuple[str, str]]:
    """Dashboard and query, for panels, annotations and variables."""
    found = []
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        found += [(path.name, t["expr"]) for panel in dashboard["panels"] for t in panel.get("targets", ())]
        found += [(path.name, annotation["expr"]) for annotation in dashboard["annotations"]["list"]]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                selector = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
                assert selector, variable
                found.append((path.name, selector.group(1)))
    return [(name, re.sub(r"\$__rate_interval", "5m", query)) for name, query in found]


def test_rules_and_dashboards_name_metrics_that_there_are() -> None:
    queries = dashboard_queries() + [
        (file, rule["expr"]) for file in ("alerts.yml", "recording.yml") for rule in rules_of(file)
    ]
    assert len(queries) > 80
    known = known_names()
    unknown = {(where, name) for where, query in queries for name in metric_names(query) if name not in known}
    assert not unknown
    assert all(metric_names(query) for _, query in queries)


def test_every_metric_of_ours_is_on_a_dashboard_or_in_a_rule() -> None:
    used = {name for _, query in dashboard_queries() for name in metric_names(query)}
    used |= {
        name
        for file in ("alerts.yml", "recording.yml")
        for rule in rules_of(file)
        for name in metric_names(rule["expr"])
    }
    families = {family.name for family in Metrics().registry.collect() if family.name.startswith("rm_")}
    unused = {name for name in families if not any(word.startswith(name) for word in used)}
    assert not unused


@needs_promtool
@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_the_queries_of_a_dashboard_can_be_read(path: Path, tmp_path: Path) -> None:
    """As rules, which are read by the same parser."""
    rules = [
        {"record": f"query_{number}", "expr": re.sub(r"\$\w+", "x", query)}
        for number, (name, query) in enumerate(dashboard_queries())
        if name == path.name
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": path.stem, "rules": rules}]}))
    check = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len(ids)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", path.read_text())) <= variables
