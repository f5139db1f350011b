"""The measured rate follows the batches."""

from __future__ import annotations

import pytest

from rm_server.engine.throughput import Throughput, Throughputs


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


FAST, SLOW, NEW = ("fast", "1"), ("slow", "1"), ("new", "1")


def test_versions_have_rates_of_their_own_and_a_new_one_that_of_all() -> None:
    throughputs = Throughputs()
    for _ in range(50):
        throughputs.add({FAST: 9000}, 1.0)
        throughputs.add({SLOW: 1000}, 1.0)
    assert throughputs.tokens_per_s_of(FAST) == pytest.approx(9000, rel=0.01)
    assert throughputs.tokens_per_s_of(SLOW) == pytest.approx(1000, rel=0.01)
    assert throughputs.tokens_per_s_of(NEW) == throughputs.tokens_per_s == pytest.approx(5000, rel=0.1)
    throughputs.forget(FAST)
    assert throughputs.tokens_per_s_of(FAST) == throughputs.tokens_per_s


def test_a_mixed_batch_is_divided_by_tokens_and_the_background_is_not_for_all() -> None:
    throughputs = Throughputs()
    throughputs.add({FAST: 3000, SLOW: 1000}, 2.0)
    of_all = throughputs.tokens_per_s
    assert of_all == pytest.approx(2000, rel=1e-3)
    assert throughputs.tokens_per_s_of(FAST) == pytest.approx(throughputs.tokens_per_s_of(SLOW), rel=1e-3)
    throughputs.add({SLOW: 10}, 1.0, is_for_all=False)
    assert throughputs.tokens_per_s == of_all
    assert throughputs.tokens_per_s_of(SLOW) < 1000
