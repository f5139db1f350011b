"""What is to be added to the catalog is kept until it is there, and no longer."""

from __future__ import annotations

from rm_server.scoring.run_statistics import PendingStatistics


def test_what_could_not_be_written_is_added_to_what_came_since() -> None:
    pending = PendingStatistics(10)
    pending.add("r", "m", 1, scores=[1.0, 3.0], tokens=10, now=1.0)
    taken = pending.take()
    assert list(pending) == []
    pending.add("r", "m", 1, scores=[5.0], tokens=5, now=2.0)
    pending.add("s", "m", 2, scores=[7.0], tokens=1, now=3.0)
    pending.put_back(taken)
    known = {part.key: part for part in pending}
    assert (known["r", "m", 1].num_items, known["r", "m", 1].num_tokens) == (3, 15)
    assert (known["r", "m", 1].score_mean, known["r", "m", 1].last_seen) == (3.0, 2.0)
    assert known["s", "m", 2].num_items == 1


def test_runs_models_and_versions_are_apart_and_the_one_seen_longest_ago_goes() -> None:
    pending = PendingStatistics(3)
    for run, model, version in (("a", "m", 1), ("b", "m", 1), ("a", "m", 1), ("a", "n", 1), ("a", "m", 2)):
        pending.add(run, model, version, scores=[1.0], tokens=1, now=0.0)
    assert [part.key for part in pending] == [("a", "m", 1), ("a", "n", 1), ("a", "m", 2)]
