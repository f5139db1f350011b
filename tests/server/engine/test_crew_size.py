"""How many workers with how many threads, by settings and cores."""

from __future__ import annotations

import pytest

from rm_server.config import EngineSettings
from rm_server.engine import crew_size
from rm_server.engine.crew_size import num_workers, threads_alone, threads_per_worker


@pytest.mark.parametrize(
    ("num_cores", "settings", "expected"),
    [
        (1, {}, (1, 1, 1)),
        (2, {}, (2, 1, 2)),
        (16, {}, (2, 8, 16)),
        (7, {}, (2, 3, 6)),
        (16, {"device": "cuda:0"}, (1, 16, 16)),
        (16, {"workers": 1}, (1, 16, 16)),
        (16, {"workers": 4}, (4, 4, 16)),
        (16, {"workers": 4, "threads_per_worker": 2}, (4, 2, 8)),
        (2, {"workers": 8}, (8, 1, 8)),
        (16, {"workers": 0}, (0, 16, 16)),
        (16, {"deterministic": True}, (2, 8, 8)),
        (16, {"device": "cuda:0", "workers": 2}, (2, 8, 8)),
    ],
)
def test_workers_and_their_threads(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, settings: dict[str, object], expected: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(crew_size, "_num_cores", lambda: num_cores)
    engine = EngineSettings(**settings)  # type: ignore[arg-type]
    assert (num_workers(engine), threads_per_worker(engine), threads_alone(engine)) == expected
