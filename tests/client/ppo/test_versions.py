"""Whether a run goes on when another version answers: a table."""

from __future__ import annotations

import pytest

from ppo_client.ppo.errors import VersionChanged
from ppo_client.ppo.scores.versions import RewardVersion, VersionChange, changes, follows

V1, V2 = RewardVersion("m", 1, "a" * 64), RewardVersion("m", 2, "b" * 64)
V1_REBUILT = RewardVersion("m", 1, "c" * 64)


@pytest.mark.parametrize(
    ("selector", "setting", "expected"),
    [
        ("m", "auto", False),
        ("m@3", "auto", False),
        ("m@stable", "auto", True),
        ("m", "follow", True),
        ("m@3", "follow", True),
        ("m@stable", "stop", False),
    ],
)
def test_who_follows(selector: str, setting: str, expected: bool) -> None:
    assert follows(selector, setting) is expected


def test_the_first_version_is_no_change() -> None:
    assert changes(None, [V1, V1], selector="m", setting="reward.model", may_follow=False) == (V1, [])
    assert changes(V1, [V1], selector="m", setting="reward.model", may_follow=False) == (V1, [])


def test_every_change_is_told_even_within_a_step() -> None:
    expected, found = changes(V1, [V1, V2, V2, V1], selector="m@stable", setting="reward.model", may_follow=True)
    assert expected == V1
    assert found == [VersionChange(V1, V2), VersionChange(V2, V1)]
    assert str(found[0]) == "the reward now comes from m@2, before from m@1"


def test_stopping_says_how_to_go_on() -> None:
    with pytest.raises(VersionChanged) as caught:
        changes(V1, [V2], selector="m", setting="reward.model", may_follow=False)
    assert "on_version_change=follow" in str(caught.value)
    assert "--set reward.model=m@1" in str(caught.value)
    with pytest.raises(VersionChanged, match=r"--set reward\.models=\[…\], with m@1 in the place of 'm@stable'"):
        changes(V1, [V2], selector="m@stable", setting="reward.models", may_follow=False)


def test_other_content_under_the_same_number_is_never_followed() -> None:
    with pytest.raises(VersionChanged, match="versions are immutable"):
        changes(V1, [V1_REBUILT], selector="m@stable", setting="reward.model", may_follow=True)
