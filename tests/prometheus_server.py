"""A Prometheus of the tests' own: on loopback, the rules of deploy/ made impatient; skipped where none is installed."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

RULES = Path(__file__).parent.parent / "deploy" / "prometheus"
_CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [recording.yml, alerts.yml]
scrape_configs:
  - job_name: rm-server
    file_sd_configs: [{files: [servers.json]}]
"""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Prometheus:
    """It scrapes each second, and alerts fire at once: `for` is taken out of the rules, nothing else."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder = folder
        (folder / "prometheus.yml").write_text(_CONFIG)
        shutil.copy(RULES / "recording.yml", folder)
        alerts, num_changed = re.subn(r"(?m)^ +for: .*\n", "", (RULES / "alerts.yml").read_text())
        assert num_changed
        (folder / "alerts.yml").write_text(alerts)
        self._targets: list[str] = []
        self._write_targets()
        self._address = f"127.0.0.1:{free_port()}"
        options = (f"--web.listen-address={self._address}", "--config.file=prometheus.yml", "--storage.tsdb.path=data")
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen([program, *options], cwd=folder, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, "Prometheus is ready", lambda: (folder / "log").read_text())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def scrape(self, address: str) -> None:
        """Adds a server, by its HTTP address; returns when it was scraped."""
        self._targets.append(address)
        self._write_targets()
        wait_until(lambda: bool(self.query(f'up{{instance="{address}"}} == 1')), f"{address} is scraped")

    def forget(self, address: str) -> None:
        """Takes a server out."""
        self._targets.remove(address)
        self._write_targets()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of now: each has ``metric``, its labels, and ``value``, [time, text]."""
        result: list[dict[str, Any]] = self._get("query", query=expression)["data"]["result"]
        return result

    def firing(self, address: str) -> dict[str, list[dict[str, Any]]]:
        """The alerts of a server, by name."""
        firing: dict[str, list[dict[str, Any]]] = {}
        for alert in self._get("alerts")["data"]["alerts"]:
            if alert["state"] == "firing" and alert["labels"].get("instance") == address:
                firing.setdefault(alert["labels"]["alertname"], []).append(alert)
        return firing

    def wait_for(self, address: str, *names: str) -> dict[str, list[dict[str, Any]]]:
        """All alerts of a server, once those that are named fire."""
        wait_until(
            lambda: set(names) <= self.firing(address).keys(),
            f"{', '.join(names)} of {address} fire",
            lambda: f"firing: {sorted(self.firing(address))}",
        )
        return self.firing(address)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            with _DIRECT.open(f"http://{self._address}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with _DIRECT.open(url, timeout=30) as answer:
            content: dict[str, Any] = json.load(answer)
        assert content["status"] == "success", content
        return content

    def _write_targets(self) -> None:
        content = json.dumps([{"targets": self._targets}])
        new = self._folder / "servers.json.new"
        new.write_text(content)
        new.replace(self._folder / "servers.json")


@contextmanager
def running_prometheus(folder: Path) -> Iterator[Prometheus]:
    """One for the time of a block; the test is skipped where Prometheus is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    prometheus = Prometheus(folder, program)
    try:
        yield prometheus
    finally:
        prometheus.stop()


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
