from __future__ import annotations

import inspect

import pytest

from ppo_client.client import errors
from ppo_client.client.errors import InvalidSettings, RewardClientError
from ppo_client.client.retry import RetryBudget, RetryPolicy, is_work_failure, pause_s

POLICY = RetryPolicy(base_backoff_s=0.1, max_backoff_s=2.0, max_work_failures=3)
AT_ONCE, BACKOFF, HINT, NEVER = "at once", "backoff", "hint", "never"


def decide(
    error: RewardClientError,
    *,
    attempt: int = 1,
    num_work_failures: int = 0,
    remaining_s: float = 100.0,
    is_other_target_ready: bool = False,
    draw: float = 0.5,
) -> float | None:
    return pause_s(
        POLICY,
        error,
        attempt=attempt,
        num_work_failures=num_work_failures,
        remaining_s=remaining_s,
        is_other_target_ready=is_other_target_ready,
        draw=draw,
    )


def meaning(pause: float | None) -> str:
    return {None: NEVER, 0.0: AT_ONCE, 0.05: BACKOFF, 7.05: HINT}[pause if pause is None else round(pause, 9)]


@pytest.mark.parametrize(
    ("error", "alone", "with_another_target"),
    [
        (errors.ServerUnreachable("x"), BACKOFF, AT_ONCE),
        (errors.Draining("x"), BACKOFF, AT_ONCE),
        (errors.QueueFull("x"), BACKOFF, BACKOFF),
        (errors.QueueFull("x", retry_after_s=7.0), HINT, BACKOFF),
        (errors.Draining("x", retry_after_s=7.0), HINT, AT_ONCE),
        (errors.RateLimited("x", retry_after_s=7.0), HINT, HINT),
        (errors.WorkerFailed("x"), BACKOFF, BACKOFF),
        (errors.OutOfMemory("x"), BACKOFF, BACKOFF),
        (errors.CatalogUnavailable("x"), BACKOFF, BACKOFF),
        (errors.Cancelled("x"), BACKOFF, BACKOFF),
        (errors.Unavailable("x"), BACKOFF, BACKOFF),
    ],
)
def test_what_may_pass_is_repeated(error: RewardClientError, alone: str, with_another_target: str) -> None:
    assert meaning(decide(error)) == alone
    assert meaning(decide(error, is_other_target_ready=True)) == with_another_target


PERMANENT = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, RewardClientError) and not issubclass(cls, errors.Unavailable)
]


@pytest.mark.parametrize("cls", PERMANENT)
def test_nothing_else_is_ever_repeated(cls: type[RewardClientError]) -> None:
    assert decide(cls("x"), is_other_target_ready=True) is None


def test_wrong_requests_unknown_names_and_deadlines_are_among_the_permanent_ones() -> None:
    assert {errors.InvalidSelector, errors.ModelNotFound, errors.DeadlineExceeded, errors.BrokenVersion} <= set(
        PERMANENT
    )


def test_work_that_breaks_workers_is_tried_three_times_in_all() -> None:
    poison = errors.WorkerFailed("x")
    assert [decide(poison, num_work_failures=failures) is None for failures in (1, 2, 3)] == [False, False, True]
    assert decide(errors.QueueFull("x"), num_work_failures=3) is not None
    assert is_work_failure(errors.OutOfMemory("x"))
    assert not is_work_failure(errors.QueueFull("x"))


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.1), (2, 0.2), (3, 0.4), (5, 1.6), (6, 2.0), (10_000, 2.0)])
def test_pauses_are_drawn_from_zero_to_an_exponentially_growing_limit(attempt: int, longest: float) -> None:
    error = errors.QueueFull("x")
    assert decide(error, attempt=attempt, draw=0.0) == 0.0
    assert decide(error, attempt=attempt, draw=0.999) == pytest.approx(0.999 * longest)


def test_a_pause_that_would_outlast_the_deadline_is_not_begun() -> None:
    error = errors.QueueFull("x", retry_after_s=7.0)
    assert decide(error, remaining_s=7.04) is None
    assert decide(error, remaining_s=7.06) is not None
    assert decide(errors.ServerUnreachable("x"), remaining_s=0.0, is_other_target_ready=True) is None


def test_an_outage_gets_a_burst_and_then_a_trickle() -> None:
    budget = RetryBudget(RetryPolicy(burst=3, refill_per_s=2.0), now=0.0)
    assert [budget.take(0.0) for _ in range(5)] == [True, True, True, False, False]
    assert [budget.take(0.5), budget.take(0.5)] == [True, False]
    assert [budget.take(0.75), budget.take(1.0)] == [False, True]


def test_successes_earn_retries_up_to_the_burst() -> None:
    budget = RetryBudget(RetryPolicy(burst=2, refill_per_s=0.001), now=0.0)
    assert [budget.take(0.0) for _ in range(3)] == [True, True, False]
    budget.succeeded()
    assert [budget.take(0.0), budget.take(0.0)] == [True, False]
    for _ in range(10):
        budget.succeeded()
    assert [budget.take(0.0) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_backoff_s": 0.0},
        {"base_backoff_s": 6.0},
        {"max_work_failures": 0},
        {"burst": 0.5},
        {"refill_per_s": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidSettings):
        RetryPolicy(**wrong)
