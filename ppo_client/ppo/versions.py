"""Which version of the reward model a run learns from, and what to do when another one answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ppo_client.client.scores import Scores
from ppo_client.ppo.errors import VersionChanged


@dataclass(frozen=True, slots=True)
class RewardVersion:
    """What gave a score."""

    model: str
    version: int
    digest: str

    @classmethod
    def of(cls, scores: Scores) -> RewardVersion:
        return cls(scores.model, scores.version, scores.digest)

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True)
class VersionChange:
    """The run went on with another version."""

    before: RewardVersion
    after: RewardVersion

    def __str__(self) -> str:
        return f"the reward now comes from {self.after}, before from {self.before}"


def follows(selector: str, on_version_change: str) -> bool:
    """Whether a run may go on with another version: `auto` follows labels, and stops for the others."""
    if on_version_change != "auto":
        return on_version_change == "follow"
    _, at, place = selector.partition("@")
    return bool(at) and not place.isdigit()


def changes(
    known: RewardVersion | None, seen: Iterable[RewardVersion], *, selector: str, may_follow: bool
) -> tuple[RewardVersion | None, list[VersionChange]]:
    """The version to expect from now on, and the changes on the way there. Raises VersionChanged.

    `known`: expected so far; None at the start of a run. `seen`: of the replies, in the order they were asked for.
    """
    found: list[VersionChange] = []
    for version in seen:
        if known is not None and version != known:
            if (version.model, version.version) == (known.model, known.version):
                raise VersionChanged(
                    f"{version} answered with the digest {version.digest:.12}, before with {known.digest:.12}: "
                    "versions are immutable, so one of the servers holds another artifact; compare their catalogs"
                )
            if not may_follow:
                raise VersionChanged(
                    f"{selector!r} is now {version} (digest {version.digest:.12}), and the run learns from {known} "
                    f"({known.digest:.12}). To go on with the new one, resume with --set reward.on_version_change="
                    f"follow; to go on with the old one, with --set reward.model={known}"
                )
            found.append(VersionChange(known, version))
        known = version
    return known, found
