"""Replies are checked before anything is learnt; a service that is away is waited for, up to a limit."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from threading import Timer
from typing import Any

import pytest
from tiny_policies import make_scores

from ppo_client.client.errors import (
    ItemsFailed,
    ItemTooLong,
    QueueFull,
    RateLimited,
    RewardClientError,
    UnsupportedContent,
)
from ppo_client.client.scores import Calibration, Content, Scores
from ppo_client.ppo.config import RewardConfig, RewardModelConfig
from ppo_client.ppo.errors import FailedItems, InvalidScores, RewardServiceAway, RunStopped
from ppo_client.ppo.scores.connect import AWAY_ERRORS
from ppo_client.ppo.scores.reward_source import RewardDesk, checked, parts_of
from ppo_client.ppo.scores.waiting import Patience, Stop


class Away(Exception):
    pass


class Flaky:
    """Fails with the given errors, one a call, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.futures: list[Future[Scores]] = []

    def submit(
        self, model: str, *, prompts: Sequence[Content], completions: Sequence[Content], calibrated: bool = False
    ) -> Future[Scores]:
        future: Future[Scores] = Future()
        self.futures.append(future)
        if self.errors:
            future.set_exception(self.errors.pop(0))
        else:
            future.set_result(make_scores([1.0] * len(completions)))
        return future


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


def make_desk(source: Any, clock: Clock, limit_s: float, told: list[str] | None = None, **more: Any) -> RewardDesk:
    report = (told if told is not None else []).append
    patience = Patience(
        limit_s, away_errors=(Away,), report=report, clock=lambda: clock.now_s, sleep=clock.sleep, **more
    )
    return RewardDesk(source, (RewardModelConfig("m"),), patience)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None, "1.0", True])
def test_a_score_that_is_no_finite_number_is_an_error(value: Any) -> None:
    with pytest.raises(InvalidScores, match="for completion 1 of 2"):
        checked(make_scores([0.5, value]), num_expected=2)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0]])
def test_the_number_of_scores_is_checked(values: list[float]) -> None:
    with pytest.raises(InvalidScores, match=f"answered {len(values)} scores for 2 completions"):
        checked(make_scores(values), num_expected=2)


def test_calibration_and_truncation_are_asked_for_when_they_are_wanted() -> None:
    asked: list[dict[str, Any]] = []

    class Noting(Flaky):
        def submit(self, model: str, **request: Any) -> Future[Scores]:
            asked.append(request)
            return super().submit(model, prompts=request["prompts"], completions=request["completions"])

    desk = make_desk(Noting(), Clock(), 1.0)
    desk.ask(["p"], ["c"])
    replace(desk, parts=(RewardModelConfig("m", calibrated=True),)).ask(["p"], ["c"])
    replace(desk, truncation="keep_end").ask(["p"], ["c"])
    options = [{name: request[name] for name in request.keys() - {"prompts", "completions"}} for request in asked]
    assert options == [{}, {"calibrated": True}, {"truncation": "keep_end"}]


def test_it_is_asked_again_while_the_service_is_away() -> None:
    source, clock, told = Flaky(Away("down"), Away("down"), Away("down")), Clock(), list[str]()
    troubles: list[float] = []
    desk = make_desk(source, clock, 60.0, told, on_trouble=lambda: troubles.append(clock.now_s))
    (given,) = desk.ask(["p"], ["c"]).result()
    assert given.value == 1.0
    assert clock.now_s == pytest.approx(0.5 + 1.0 + 2.0)
    assert troubles[0] == 0.0, "before the first pause"
    assert len(source.futures) == 4
    assert len(told) == 3
    assert "down" in told[0]


def test_it_is_asked_again_no_sooner_than_a_server_has_said() -> None:
    clock = Clock()
    source = Flaky(RateLimited("at its limit", retry_after_s=20.0), QueueFull("full", retry_after_s=0.1))
    desk = make_desk(source, clock, 60.0)
    replace(desk, patience=replace(desk.patience, away_errors=AWAY_ERRORS)).ask(["p"], ["c"]).result()
    assert clock.now_s == pytest.approx(20.0 + 1.0)


def test_patience_ends() -> None:
    source, clock = Flaky(*[Away("gone")] * 99), Clock()
    with pytest.raises(RewardServiceAway, match=r"for 10 s \(reward.patience_s\): gone"):
        make_desk(source, clock, 10.0).ask(["p"], ["c"]).result()
    assert clock.now_s == pytest.approx(10.0)


def test_who_asks_once_is_not_told_of_a_setting_for_more() -> None:
    with pytest.raises(RewardServiceAway, match=r"^no scores from 'm': gone$"):
        make_desk(Flaky(Away("gone")), Clock(), 0.0).ask(["p"], ["c"]).result()


def test_a_run_that_is_to_stop_waits_no_longer() -> None:
    clock = Clock()
    stop = Stop()

    def signalled(seconds: float) -> None:
        clock.sleep(seconds)
        stop.is_wanted = clock.now_s > 20

    desk = make_desk(Flaky(*[Away("gone")] * 99), clock, 600.0, stop=stop)
    desk = replace(desk, patience=replace(desk.patience, sleep=signalled))
    with pytest.raises(RunStopped, match=r"^stopped while there were no scores from 'm': gone$"):
        desk.ask(["p"], ["c"]).result()
    assert clock.now_s <= 21


class Never(Flaky):
    """Does not answer."""

    def submit(
        self, model: str, *, prompts: Sequence[Content], completions: Sequence[Content], calibrated: bool = False
    ) -> Future[Scores]:
        self.futures.append(Future())
        return self.futures[-1]


def test_a_run_that_is_to_stop_does_not_wait_for_an_answer() -> None:
    source = Never()
    desk = RewardDesk(source, (RewardModelConfig("m"),), Patience(600.0, stop=Stop(is_wanted=True)))
    with pytest.raises(RunStopped, match="while scores were being waited for"):
        desk.ask(["p"], ["c"]).result()
    assert source.futures[0].cancelled()


class Slow(Never):
    """Answers after a while."""

    def submit(self, model: str, **request: Any) -> Future[Scores]:
        future = super().submit(model, **request)
        Timer(0.25, future.set_result, [make_scores([1.0])]).start()
        return future


def test_a_run_that_is_to_stop_takes_an_answer_that_is_about_to_come() -> None:
    desk = make_desk(Slow(), Clock(), 600.0, stop=Stop(is_wanted=True))  # by this clock no time passes
    assert desk.ask(["p"], ["c"]).result()[0].value == 1.0


def test_a_long_wait_is_trouble_once_and_no_reason_to_stop() -> None:
    ticks, troubles = count(step=10.0), list[None]()
    desk = make_desk(Slow(), Clock(), 600.0, on_trouble=lambda: troubles.append(None))
    desk = replace(desk, patience=replace(desk.patience, clock=lambda: next(ticks)))
    assert desk.ask(["p"], ["c"]).result()[0].value == 1.0
    assert len(troubles) == 1


def test_a_source_that_never_answers_is_as_one_that_is_away() -> None:
    source, ticks = Never(), count(step=0.1)
    desk = make_desk(source, Clock(), 1.0, timeout_s=0.2)
    desk = replace(desk, patience=replace(desk.patience, clock=lambda: next(ticks)))
    with pytest.raises(RewardServiceAway, match=r"no answer within 0\.2 s"):
        desk.ask(["p"], ["c"]).result()
    assert len(source.futures) > 1
    assert all(future.cancelled() for future in source.futures)


def test_several_models_are_asked_at_once_weighted_and_named() -> None:
    asked: list[tuple[str, bool]] = []

    class Several(Flaky):
        def submit(self, model: str, **request: Any) -> Future[Scores]:
            asked.append((model, "calibrated" in request))
            future: Future[Scores] = Future()
            if model == "b@2":
                assert len(asked) == 2, "the first is not waited for"
            values = [1.0, 2.0] if model == "a" else [10.0, 20.0]
            scores = make_scores(values, model=model.partition("@")[0], version=2 if model == "b@2" else 1)
            future.set_result(
                replace(scores, calibration=Calibration("c" * 64, 1.0, 0.0)) if request.get("calibrated") else scores
            )
            return future

    parts = (RewardModelConfig("a", 0.5), RewardModelConfig("b@2", -0.1, calibrated=True))
    found = RewardDesk(Several(), parts, Patience(0.0)).ask(["p", "q"], ["c", "d"]).result()
    assert asked == [("a", False), ("b@2", True)]
    assert [one.value for one in found] == [pytest.approx(-0.5), pytest.approx(-1.0)]
    assert found[1].parts == (2.0, 20.0)
    assert [str(version) for version in found[0].versions] == ["a@1", "b@2"]
    assert found[0].versions[1].calibration == "c" * 64


def items_failed(*errors: RewardClientError) -> ItemsFailed:
    calibration = Calibration("c" * 64, 1.0, 0.0)
    named: dict[str, Any] = {"model": "m", "version": 1, "digest": "d" * 64, "calibration": calibration}
    return ItemsFailed("some", errors=dict(enumerate(errors, start=1)), scores={0: 0.5}, **named)


class OneFails(Flaky):
    """Of several models the one that is called m."""

    def submit(self, model: str, **request: Any) -> Future[Scores]:
        return (super() if model == "m" else Flaky()).submit(model, **request)


@pytest.mark.parametrize("names", ["mn", "nm"])
def test_what_failed_for_one_item_can_be_dropped_and_is_never_a_number(names: str) -> None:
    parts = tuple(RewardModelConfig(name, calibrated=name == "m") for name in names)
    desk = RewardDesk(OneFails(items_failed(ItemTooLong("73 tokens"))), parts, Patience(0.0), drops_failed_items=True)
    kept, dropped = desk.ask(["p", "q"], ["c", "d"]).result()
    assert (kept.value, {version.calibration for version in kept.versions}) == (1.5, {"c" * 64, None})
    assert (dropped.value, dropped.parts, dropped.versions) == (None, (), ())
    assert dropped.error == "ItemTooLong: 73 tokens"


def test_failed_items_end_a_run_that_does_not_drop_them() -> None:
    with pytest.raises(FailedItems, match=r"^some .*reward\.truncation.*reward\.on_failed_item"):
        make_desk(Flaky(items_failed(ItemTooLong("73 tokens"))), Clock(), 0.0).ask(["p", "q"], ["c", "d"]).result()


def test_content_that_a_model_never_reads_is_no_matter_of_cutting_or_dropping() -> None:
    errors = {row: UnsupportedContent("The version's tokenizer has no chat template") for row in range(2)}
    with pytest.raises(FailedItems, match=r"^none .*another kind.* data\.prompts, .* reward\.model") as caught:
        make_desk(Flaky(ItemsFailed("none", errors=errors)), Clock(), 0.0).ask(["p", "q"], ["c", "d"]).result()
    assert "on_failed_item" not in str(caught.value)
    # One text among others is a matter of that.
    desk = make_desk(Flaky(items_failed(UnsupportedContent("roles must alternate"))), Clock(), 0.0)
    with pytest.raises(FailedItems, match=r"reward\.on_failed_item"):
        desk.ask(["p", "q"], ["c", "d"]).result()


def test_what_may_get_a_score_later_is_waited_for_and_not_dropped() -> None:
    long, full = ItemTooLong("long"), QueueFull("later")
    desk = replace(make_desk(Flaky(items_failed(long, full)), clock := Clock(), 60.0), drops_failed_items=True)
    assert [one.value for one in desk.ask(["p", "q", "r"], ["c", "d", "e"]).result()] == [1.0, 1.0, 1.0]
    assert sum(clock.pauses) == pytest.approx(0.5)
    desk = replace(make_desk(Flaky(*[items_failed(long, full)] * 9), Clock(), 1.0), drops_failed_items=True)
    with pytest.raises(RewardServiceAway, match="no scores from 'm' for 1 s"):
        desk.ask(["p", "q", "r"], ["c", "d", "e"]).result()


def test_a_run_that_does_not_drop_ends_at_once_where_an_item_never_gets_a_score() -> None:
    error = items_failed(ItemTooLong("long"), QueueFull("later"))
    with pytest.raises(FailedItems, match=r"reward\.truncation"):
        make_desk(Flaky(error), clock := Clock(), 60.0).ask(["p", "q", "r"], ["c", "d", "e"]).result()
    assert clock.pauses == []


def test_whole_calls_are_not_dropped() -> None:
    desk = replace(make_desk(Flaky(ItemTooLong("whole call")), Clock(), 0.0), drops_failed_items=True)
    with pytest.raises(ItemTooLong):
        desk.ask(["p", "q", "r"], ["c", "d", "e"]).result()


def test_recalibrate_asks_for_calibrated_scores_of_every_model() -> None:
    reward = RewardConfig(models=(RewardModelConfig("a", 2.0), RewardModelConfig("b")), on_version_change="recalibrate")
    assert parts_of(reward) == (RewardModelConfig("a", 2.0, True), RewardModelConfig("b", 1.0, True))
    assert parts_of(RewardConfig(model="a", calibrated=True)) == (RewardModelConfig("a", 1.0, True),)


def test_other_errors_are_not_repeated() -> None:
    source, clock = Flaky(ValueError("bad request")), Clock()
    with pytest.raises(ValueError, match="bad request"):
        make_desk(source, clock, 60.0).ask(["p"], ["c"]).result()
    assert len(source.futures) == 1
    assert clock.pauses == []


def test_a_request_that_nobody_wants_is_cancelled() -> None:
    source = Never()
    make_desk(source, Clock(), 1.0).ask(["p"], ["c"]).cancel()
    assert source.futures[0].cancelled()


@pytest.mark.parametrize("asked", [True, False])
def test_scores_on_another_scale_than_asked_for_are_an_error(asked: bool) -> None:
    raw = make_scores([0.5])
    calibrated = replace(raw, calibration=Calibration("d" * 64, 2.0, 0.0))
    right, wrong = (calibrated, raw) if asked else (raw, calibrated)
    assert checked(right, num_expected=1, calibrated=asked) is right
    with pytest.raises(InvalidScores, match=r"reward\.calibrated"):
        checked(wrong, num_expected=1, calibrated=asked)
