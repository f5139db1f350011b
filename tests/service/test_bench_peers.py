"""The comparison with other servers goes on without those that cannot be started, fail on the way, or score wrongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import workload
from bench.load import Answer, Call
from bench.measurement import Bench
from bench.peers.catalog import CONTROL, PEERS
from bench.peers.peer import Peer
from bench.questions import peers

SPEEDS = {"infinity": 300, "litserve": 100, "mosec": 200, "openrlhf": 120, "pytriton": 110, CONTROL.name: 800}
POOL = workload.items(workload.Vocabulary(("a", "b", "c"), 2, 512), 64, seed=0)


def answers(tokens_per_s: int) -> list[Answer]:
    call = Call(b"", 8, tokens_per_s)
    return [Answer(call, 0, due=float(second), end=second + 1.0) for second in range(4)]


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], None]]:
    """Servers answer at `SPEEDS`, ours at 900, without processes; ``refusals`` runs when a peer is asked."""
    found: dict[str, Callable[[], None]] = {}

    def running(peer: Peer, *_: Any, **__: Any) -> Any:
        if peer.name == "mosec":
            raise RuntimeError("mosec ended at its start:\nTraceback\nit | wants a newer system\n")
        return nullcontext(peer)

    def check(peer: Peer, *_: Any) -> None:
        if peer.name == "openrlhf":
            raise RuntimeError("openrlhf gives scores that are 0.2 off those of transformers.")

    def theirs(bench: Bench, peer: Peer, calls: Sequence[Call], seconds: float) -> Callable[[], list[Answer]]:
        def ask() -> list[Answer]:
            found.get(peer.name, lambda: None)()
            return answers(SPEEDS[peer.name])

        return ask

    service = SimpleNamespace(deploy=lambda *_: "m@1")
    offline = SimpleNamespace(load=lambda *_: None, tokens_per_s=lambda *_: 50.0)
    monkeypatch.setattr(peers, "Service", lambda **_: nullcontext(service))
    monkeypatch.setattr(peers, "Offline", lambda **_: nullcontext(offline))
    monkeypatch.setattr(peers.models, "encoder", lambda: SimpleNamespace(name="m", folder=Path(), vocabulary=None))
    monkeypatch.setattr(peers, "items", lambda *_, **__: POOL)
    monkeypatch.setattr(peers, "RunningPeer", running)
    monkeypatch.setattr(peers, "_check_scores", check)
    monkeypatch.setattr(peers, "_ours", lambda *_: lambda: answers(900))
    monkeypatch.setattr(peers, "_theirs", theirs)
    return found


def test_a_peer_that_fails_gets_a_row_with_the_reason_and_costs_no_other_its_own(
    refusals: dict[str, Callable[[], None]],
) -> None:
    times = iter(range(100))

    def fails_in_its_second_round() -> None:
        if next(times) == 1:
            raise TimeoutError

    refusals["infinity"] = fails_in_its_second_round
    bench = Bench()
    peers.run(bench)
    reasons = {
        row["server"]: row["not_run"] for row in bench.rows if row.get("precision") == "fp32" and "not_run" in row
    }
    assert reasons == {
        "mosec": "it / wants a newer system",
        "openrlhf": "openrlhf gives scores that are 0.2 off those of transformers.",
        "infinity": "TimeoutError",
    }
    rounds = [row for row in bench.rows if row.get("precision") == "fp32" and row["server"] == "pytriton"]
    assert len(rounds) == bench.rounds
    # pytriton is the fastest of those that answered in all rounds in fp32; in bf16 infinity did not fail.
    assert bench.figures["service_over_best_peer_fp32"] == pytest.approx(900 / 110)
    assert bench.figures["service_over_best_peer_bf16"] == pytest.approx(900 / 300)
    assert bench.figures["service_over_litserve_with_our_backend"] == pytest.approx(900 / 800)


def test_without_any_peer_there_is_no_figure(refusals: dict[str, Callable[[], None]]) -> None:
    def fail() -> None:
        raise ConnectionResetError("gone")

    refusals.update(dict.fromkeys(SPEEDS, fail))
    bench = Bench()
    with pytest.raises(RuntimeError, match="No peer could be measured"):
        peers.run(bench)
    assert not bench.figures
    failed = {row["server"] for row in bench.rows if "not_run" in row}
    assert failed == {peer.name for peer in (*PEERS, CONTROL)}


def test_no_further_round_begins_when_the_time_is_over(
    refusals: dict[str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "LIMIT_S", {"fp32": 0.0, "bf16": 0.0})
    bench = Bench()
    peers.run(bench)
    assert {row["round"] for row in bench.rows if "round" in row} == {0}
    assert bench.figures["service_over_best_peer_fp32"] == pytest.approx(900 / 300)
