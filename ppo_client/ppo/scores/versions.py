"""Which version of each reward model a run learns from, and what to do when another one answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ppo_client.client.scores import Scores
from ppo_client.ppo.errors import VersionChanged


@dataclass(frozen=True, slots=True)
class RewardVersion:
    """What gave a score."""

    model: str
    version: int
    digest: str
    calibration: str | None = None
    """Digest of the map to the model's common scale; None: raw scores"""

    @classmethod
    def of(cls, scores: Scores) -> RewardVersion:
        return cls(
            scores.model, scores.version, scores.digest, scores.calibration.digest if scores.calibration else None
        )

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True)
class VersionChange:
    """The run went on with another version, or with another calibration of the same."""

    before: RewardVersion
    after: RewardVersion

    @property
    def is_calibrated(self) -> bool:
        """Scores before and after are on the model's common scale."""
        return self.before.calibration is not None and self.after.calibration is not None

    def to_event(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {
            "kind": "version_changed",
            "text": str(self),
            "model": self.after.model,
            "before": self.before.version,
            "before_digest": self.before.digest,
            "after": self.after.version,
            "after_digest": self.after.digest,
            "is_calibrated": self.is_calibrated,
        }

    def __str__(self) -> str:
        if self.before.digest == self.after.digest:
            return f"the scores of {self.after} now have the calibration {(self.after.calibration or 'none'):.12}"
        return f"the reward now comes from {self.after}, before from {self.before}"


def follows(selector: str, on_version_change: str) -> bool:
    """Whether a run may go on with another version: `auto` follows labels, and stops for the others."""
    if on_version_change != "auto":
        return on_version_change in ("follow", "recalibrate")
    _, at, place = selector.partition("@")
    return bool(at) and not place.isdigit()


def changes_of_all(
    known: Sequence[RewardVersion],
    seen: Sequence[Sequence[RewardVersion]],
    *,
    selectors: Sequence[str],
    setting: str,
    on_version_change: str,
) -> tuple[tuple[RewardVersion, ...], list[VersionChange]]:
    """As `changes`, for each of the run's models; rows of `seen` have one version for each selector.

    `setting`: which names the selectors. Both `known` and the versions to expect are empty before the first score.
    """
    expected: list[RewardVersion] = []
    found: list[VersionChange] = []
    for index, selector in enumerate(selectors):
        version, changed = changes(
            known[index] if known else None,
            [row[index] for row in seen],
            selector=selector,
            setting=setting,
            may_follow=follows(selector, on_version_change),
        )
        found += changed
        if version is not None:
            expected.append(version)
    return tuple(expected), found


def changes(
    known: RewardVersion | None, seen: Iterable[RewardVersion], *, selector: str, setting: str, may_follow: bool
) -> tuple[RewardVersion | None, list[VersionChange]]:
    """The version to expect from now on, and the changes on the way there. Raises VersionChanged.

    `known`: expected so far; None at the start of a run. `seen`: of the replies, in the order of the responses.
    """
    found: list[VersionChange] = []
    for version in seen:
        if known is not None and version != known:
            is_same_number = (version.model, version.version) == (known.model, known.version)
            if is_same_number and version.digest != known.digest:
                raise VersionChanged(
                    f"{version} answered with the digest {version.digest:.12}, before with {known.digest:.12}: "
                    "versions are immutable, so one of the servers holds another artifact; compare their catalogs"
                )
            if not may_follow:
                raise VersionChanged(_refusal(selector, setting, known, version))
            found.append(VersionChange(known, version))
        known = version
    return known, found


def _refusal(selector: str, setting: str, known: RewardVersion, version: RewardVersion) -> str:
    follow = "resume with --set reward.on_version_change=follow"
    if version.digest == known.digest:
        return f"{VersionChange(known, version)}, which moves the run's rewards. To go on with it, {follow}"
    keep = f"{known}" if setting == "reward.model" else f"[…], with {known} in the place of {selector!r}"
    return (
        f"{selector!r} is now {version} (digest {version.digest:.12}), and the run learns from {known} "
        f"({known.digest:.12}). To go on with the new one, {follow}; to go on with the old one, with "
        f"--set {setting}={keep}"
    )
