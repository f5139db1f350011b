"""With how many threads workers compute, by settings and cores."""

from __future__ import annotations

import pytest

from rm_server.config import EngineSettings
from rm_server.engine import threads
from rm_server.engine.threads import threads_alone, threads_per_worker


@pytest.mark.parametrize(
    ("num_cores", "settings", "expected"),
    [
        (1, {}, (1, 1)),
        (16, {}, (16, 16)),
        (16, {"workers": 2}, (8, 16)),
        (7, {"workers": 2}, (3, 6)),
        (16, {"workers": 4, "threads_per_worker": 2}, (2, 8)),
        (2, {"workers": 8}, (1, 2)),
        (2, {"workers": 2, "threads_per_worker": 3}, (3, 3)),
        (16, {"workers": 0}, (16, 16)),
        (16, {"workers": 2, "deterministic": True}, (8, 8)),
        (16, {"workers": 2, "device": "cuda:0"}, (8, 8)),
    ],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, settings: dict[str, object], expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(threads, "num_cores", lambda: num_cores)
    engine = EngineSettings(**settings)  # type: ignore[arg-type]
    assert (threads_per_worker(engine), threads_alone(engine)) == expected
