"""What to do next, as tables. Versions of model m are written as numbers."""

from __future__ import annotations

import pytest

from rm_server.engine.lifecycle import Policy, State, Step, next_steps, served_labels


def steps(wanted: set[int], actual: dict[int, State], policy: Policy = "availability") -> list[tuple[str, int]]:
    made = next_steps({("m", number) for number in wanted}, {("m", n): state for n, state in actual.items()}, policy)
    return [(step.what, step.key[1]) for step in made]


@pytest.mark.parametrize(
    ("case", "wanted", "actual", "expected"),
    [
        ("does nothing when nothing is left to do", {1}, {1: "READY"}, []),
        ("does nothing when nothing is there", set(), {}, []),
        ("loads what is wanted", {1, 2}, {}, [("load", 1), ("load", 2)]),
        ("waits for what is loading", {1}, {1: "LOADING"}, []),
        ("waits until it is drained before it loads it again", {1}, {1: "DRAINING"}, []),
        ("leaves alone what failed", {1}, {1: "FAILED"}, []),
        ("unloads what nobody wants", set(), {1: "READY"}, [("unload", 1)]),
        ("does not unload twice", set(), {1: "DRAINING"}, []),
        ("lets a load end that nobody wants any more", set(), {1: "LOADING"}, []),
        ("loads the new before unloading the old", {2}, {1: "READY"}, [("load", 2)]),
        ("keeps the old while the new is loading", {2}, {1: "READY", 2: "LOADING"}, []),
        ("unloads the old once the new serves", {2}, {1: "READY", 2: "READY"}, [("unload", 1)]),
        ("keeps the old when the new failed", {2}, {1: "READY", 2: "FAILED"}, []),
        ("keeps the old until all of the new are there", {2, 3}, {1: "READY", 2: "READY"}, [("load", 3)]),
        ("unloads the old when one of the new serves and the other failed", {2, 3},
         {1: "READY", 2: "READY", 3: "FAILED"}, [("unload", 1)]),
        ("unloads first, then loads", {3}, {1: "READY", 3: "READY", 2: "READY"}, [("unload", 1), ("unload", 2)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_availability_first(
    case: str, wanted: set[int], actual: dict[int, State], expected: list[tuple[str, int]]
) -> None:
    assert steps(wanted, actual) == expected


@pytest.mark.parametrize(
    ("wanted", "actual", "expected"),
    [
        ({2}, {1: "READY"}, [("unload", 1)]),
        ({2}, {1: "DRAINING"}, []),
        ({2}, {}, [("load", 2)]),
        ({2}, {1: "FAILED"}, [("load", 2)]),
        ({1, 2}, {1: "READY"}, [("load", 2)]),
    ],
)
def test_resources_first(wanted: set[int], actual: dict[int, State], expected: list[tuple[str, int]]) -> None:
    assert steps(wanted, actual, "resource") == expected


def test_models_do_not_wait_for_one_another() -> None:
    wanted = {("a", 2), ("b", 1)}
    assert next_steps(wanted, {("a", 1): "READY", ("c", 1): "READY"}) == [
        Step("unload", ("c", 1)),
        Step("load", ("a", 2)),
        Step("load", ("b", 1)),
    ]
    assert next_steps(wanted, {("a", 1): "READY"}, "resource") == [Step("unload", ("a", 1)), Step("load", ("b", 1))]


@pytest.mark.parametrize(
    ("case", "catalog", "served", "ready", "expected"),
    [
        ("follows the catalog", 2, 1, {1, 2}, 2),
        ("is new", 2, None, {2}, 2),
        ("waits for a version that is not ready", 2, 1, {1}, 1),
        ("does not wait where the old one is not ready either", 2, 1, set(), 2),
        ("has nothing to wait with", 2, None, set(), 2),
        ("is gone", None, 1, {1}, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_label_follows_when_its_version_is_ready(
    case: str, catalog: int | None, served: int | None, ready: set[int], expected: int | None
) -> None:
    def labels(version: int | None) -> dict[tuple[str, str], int]:
        return {} if version is None else {("m", "stable"): version}

    assert served_labels(labels(catalog), labels(served), {("m", n) for n in ready}) == labels(expected)
