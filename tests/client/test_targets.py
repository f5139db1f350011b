from __future__ import annotations

from ppo_client.client.targets import Targets


def names(targets: Targets, now: float, count: int, avoid: tuple[int, ...] = ()) -> str:
    return "".join(targets.name(targets.choose(now, avoid)) for _ in range(count))


def test_takes_turns() -> None:
    assert names(Targets("abc"), 0.0, 7) == "abcabca"


def test_begins_where_it_is_told() -> None:
    assert names(Targets("abc", start=5), 0.0, 4) == "cabc"


def test_goes_round_a_server_that_failed_until_its_time_is_over() -> None:
    targets = Targets("abc")
    assert targets.failed(1, now=0.0, began=0.0, draw=1.0)
    assert names(targets, 0.4, 4) == "acac"
    assert "b" in names(targets, 0.51, 3)


def test_a_server_that_is_back_gets_one_call_until_it_succeeds() -> None:
    targets = Targets("ab")
    targets.failed(1, now=0.0, began=0.0, draw=1.0)
    assert names(targets, 1.0, 6).count("b") == 1
    assert names(targets, 2.1, 6).count("b") == 1
    assert targets.succeeded(1)
    assert names(targets, 2.1, 6).count("b") == 3
    assert not targets.succeeded(1)


def test_is_left_out_longer_each_time_up_to_half_a_minute() -> None:
    targets = Targets("ab")
    now, pauses = 0.0, []
    for _ in range(9):
        targets.failed(1, now=now, began=now, draw=1.0)
        pause = 0.0
        while not targets.is_other_ready(now + pause, than=0):
            pause += 0.25
        pauses.append(pause)
        now += pause
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_clients_come_back_to_a_server_one_after_the_other() -> None:
    for draw, out_s in ((0.0, 0.25), (0.5, 0.375), (1.0, 0.5)):
        targets = Targets("ab")
        targets.failed(1, now=0.0, began=0.0, draw=draw)
        assert not targets.is_other_ready(out_s - 0.001, than=0)
        assert targets.is_other_ready(out_s, than=0)


def test_calls_that_fail_together_count_once() -> None:
    targets = Targets("ab")
    assert [targets.failed(1, now=1.0, began=0.5, draw=1.0) for _ in range(8)] == [True, *[False] * 7]
    assert targets.is_other_ready(1.6, than=0)


def test_asks_a_ready_server_that_failed_this_call_only_when_there_is_no_other() -> None:
    targets = Targets("abc")
    assert names(targets, 0.0, 3, avoid=(0, 1)) == "ccc"
    assert set(names(targets, 0.0, 3, avoid=(0, 1, 2))) == set("abc")


def test_when_all_are_out_asks_the_one_that_is_back_first() -> None:
    targets = Targets("ab")
    targets.failed(0, now=0.0, began=0.0, draw=1.0)
    targets.failed(1, now=0.1, began=0.1, draw=1.0)
    assert names(targets, 0.2, 1) == "a"
    assert not targets.is_other_ready(0.2, than=0)


def test_one_server_is_always_asked() -> None:
    targets = Targets("a")
    targets.failed(0, now=0.0, began=0.0, draw=1.0)
    assert names(targets, 0.0, 2) == "aa"
    assert not targets.is_other_ready(9.0, than=0)


def test_a_full_server_is_left_out_for_as_long_as_it_said() -> None:
    targets = Targets("ab")
    targets.busy(0, now=0.0, retry_after_s=3.0)
    assert names(targets, 2.9, 3) == "bbb"
    assert names(targets, 3.0, 2) in ("ab", "ba")
