"""The benchmarks run end to end; what their figures are is another matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_overhead_is_measured_and_written_down(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench", "--quick", "--only", "overhead", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert results["figures"]["overhead_p50_ms"] > 0
    rows = {row["what"]: row for row in results["rows"] if row["question"] == "overhead"}
    # A call takes its caller at least as long as the server.
    assert rows["a call, at its caller"]["p50_ms"] >= rows["in the server: compute"]["p50_ms"] > 0
    assert results["machine"]["cores"] >= 1
    assert "overhead_p50_ms" in out.with_suffix(".md").read_text()


def test_a_benchmark_in_the_background_ends_when_it_is_told_to() -> None:
    command = [sys.executable, "-c", "from bench.ending import *; end_as_by_ctrl_c(); print('up', flush=True); input()"]
    with subprocess.Popen(
        ["bash", "-c", 'trap "" INT; exec "$@"', "-", *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "up\n"
        started.terminate()
        try:
            assert "KeyboardInterrupt" in started.communicate(timeout=10)[1]
        finally:
            started.kill()
