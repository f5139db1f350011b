"""Limits of calls and items a second and at once, on a clock that the test turns."""

from __future__ import annotations

import pytest

from rm_server.api.buckets import FULL_SLOTS_RETRY_S, Bucket, Limits, Usage


def test_a_bucket_begins_full_and_fills_at_its_rate() -> None:
    bucket = Bucket(10.0, now=100.0)
    for _ in range(10):
        assert bucket.wait_s(1, now=100.0) == 0
        bucket.take(1)
    assert bucket.wait_s(1, now=100.0) == pytest.approx(0.1)
    assert bucket.wait_s(1, now=100.05) == pytest.approx(0.05)
    assert bucket.wait_s(1, now=100.1) == pytest.approx(0.0, abs=1e-9)


def test_a_bucket_holds_one_second_at_most() -> None:
    bucket = Bucket(10.0, now=0.0)
    assert bucket.wait_s(10, now=3600.0) == 0
    bucket.take(10)
    assert bucket.wait_s(1, now=3600.0) == pytest.approx(0.1)


def test_a_rate_below_one_lets_one_go_at_a_time() -> None:
    bucket = Bucket(0.5, now=0.0)
    assert bucket.wait_s(1, now=0.0) == 0
    bucket.take(1)
    assert bucket.wait_s(1, now=0.0) == pytest.approx(2.0)
    assert bucket.wait_s(1, now=2.0) == 0


def test_what_is_larger_than_the_burst_goes_when_the_bucket_is_full_and_leaves_a_debt() -> None:
    bucket = Bucket(100.0, now=0.0)
    assert bucket.wait_s(500, now=0.0) == 0
    bucket.take(500)
    assert bucket.wait_s(1, now=0.0) == pytest.approx(4.01)
    assert bucket.wait_s(500, now=4.0) == pytest.approx(1.0)
    assert bucket.wait_s(500, now=5.0) == 0


def test_the_rate_holds_in_the_long_run_whatever_the_sizes() -> None:
    usage, now, num_items = Usage(Limits(max_items_per_s=50.0), 0.0), 0.0, 0
    for size in [1, 300, 7, 40, 2, 90] * 50:
        while (reached := usage.begin(size, now)) is not None:
            now += reached[1]
        usage.end()
        num_items += size
    assert num_items / now == pytest.approx(50.0, rel=0.05)


def test_each_limit_is_named() -> None:
    usage = Usage(Limits(max_requests_per_s=2.0, max_items_per_s=10.0, max_concurrent_requests=2), 0.0)
    assert usage.begin(10, 0.0) is None
    assert usage.begin(1, 0.0) == ("max_items_per_s", pytest.approx(0.1))
    assert usage.begin(0, 0.0) is None
    assert usage.begin(0, 0.0) == ("max_concurrent_requests", FULL_SLOTS_RETRY_S)
    usage.end()
    assert usage.begin(0, 0.0) == ("max_requests_per_s", pytest.approx(0.5))
    assert usage.begin(0, 0.5) is None


def test_a_call_that_is_refused_takes_nothing() -> None:
    usage = Usage(Limits(max_requests_per_s=1.0, max_items_per_s=1.0), 0.0)
    assert usage.begin(1, 0.0) is None
    for _ in range(100):
        assert usage.begin(1, 0.5) is not None
    assert usage.begin(1, 1.0) is None


def test_a_debt_of_items_holds_up_calls_with_items_alone() -> None:
    usage = Usage(Limits(max_items_per_s=10.0), 0.0)
    assert usage.begin(100, 0.0) is None
    assert usage.begin(1, 0.0) == ("max_items_per_s", pytest.approx(9.1))
    assert usage.begin(0, 0.0) is None


def test_new_limits_keep_the_count_of_calls_under_way_and_the_same_ones_keep_their_debt() -> None:
    limits = Limits(max_items_per_s=1.0, max_concurrent_requests=2)
    usage = Usage(limits, 0.0)
    assert usage.begin(1, 0.0) is None
    usage.set_limits(Limits(max_items_per_s=1.0, max_concurrent_requests=2), 0.0)
    assert usage.begin(1, 0.0) == ("max_items_per_s", pytest.approx(1.0))
    usage.set_limits(Limits(max_concurrent_requests=1), 0.0)
    assert usage.begin(1, 0.0) == ("max_concurrent_requests", FULL_SLOTS_RETRY_S)
    usage.end()
    assert usage.begin(1, 0.0) is None


def test_without_limits_everything_goes() -> None:
    usage = Usage(Limits(), 0.0)
    assert all(usage.begin(1000, 0.0) is None for _ in range(1000))
