"""Where rollbacks go."""

from rm_server.registry.label_trail import PROMOTE, ROLLBACK, SET_LABEL, label_trail, rollback_target


def moves(*versions: int) -> list[tuple[str, int]]:
    return [(SET_LABEL, version) for version in versions]


def test_every_move_is_a_step() -> None:
    assert label_trail(moves(1, 2, 1, 3)) == (1, 2, 1, 3)


def test_a_rollback_goes_back_and_not_in_circles() -> None:
    assert label_trail([*moves(1, 2, 3), (ROLLBACK, 2)]) == (1, 2)
    assert label_trail([*moves(1, 2, 3), (ROLLBACK, 2), (ROLLBACK, 1)]) == (1,)


def test_a_promotion_is_a_step_like_any_other() -> None:
    assert label_trail([*moves(1), (PROMOTE, 2)]) == (1, 2)
    assert label_trail([*moves(1), (PROMOTE, 2), (ROLLBACK, 1)]) == (1,)


def test_after_a_rollback_the_way_goes_on_from_there() -> None:
    assert label_trail([*moves(1, 2), (ROLLBACK, 1), *moves(3)]) == (1, 3)


def test_a_removed_label_remembers_where_it_was() -> None:
    assert label_trail([*moves(1), ("remove_label", 0), *moves(2)]) == (1, 2)


def test_the_target_is_the_last_other_version_that_exists() -> None:
    assert rollback_target((1, 2, 3), 3, {1, 2, 3}) == 2
    assert rollback_target((1, 2, 3), 3, {1, 3}) == 1
    assert rollback_target((1, 2, 1), 1, {1}) is None
    assert rollback_target((1,), 1, {1}) is None
