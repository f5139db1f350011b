"""The measured rate follows the batches."""

from __future__ import annotations

import pytest

from rm_server.engine.throughput import Throughput


def test_the_guess_counts_until_something_was_measured() -> None:
    throughput = Throughput(10_000.0)
    assert throughput.tokens_per_s == pytest.approx(10_000.0)
    throughput.add(500, 1.0)
    assert throughput.tokens_per_s == pytest.approx(500.0, rel=1e-3)


def test_the_last_batches_decide() -> None:
    throughput = Throughput(10_000.0)
    for _ in range(50):
        throughput.add(1000, 1.0)
    for _ in range(50):
        throughput.add(4000, 1.0)
    assert throughput.tokens_per_s == pytest.approx(4000, rel=0.02)


def test_a_batch_that_took_no_time_is_no_division_by_zero() -> None:
    throughput = Throughput(10_000.0)
    throughput.add(0, 0.0)
    assert throughput.tokens_per_s >= 1.0
