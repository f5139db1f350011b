"""What is known of a run, put together from its lease and its statistics. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rm_server.errors import RunNotFound
from rm_server.registry.run_records import Lease, RunStatistics


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What the servers know of a run on a model. Times in seconds since the epoch.

    ``items`` and ``tokens`` count all that got a score; the rates are weighted towards the last minute. Mean and
    deviation are of the ``version_items`` raw scores by ``version``, the one that scored it last. ``arm``: of the split
    that gave it that version. ``lease_version``: the one that its lease holds; another one where the run has moved and
    was not scored since, or names its versions itself. That and ``lease_expires_at`` None: it has no lease.
    """

    run: str
    model: str
    version: int
    arm: str | None
    items: int
    tokens: int
    items_per_s: float
    tokens_per_s: float
    version_items: int
    score_mean: float
    score_std: float
    last_seen: float
    lease_version: int | None
    lease_expires_at: float | None


def run_statuses(leases: Iterable[Lease], statistics: Iterable[RunStatistics], now: float) -> list[RunStatus]:
    """One for each run and model, last seen first. Statistics of the same run and version are added up."""
    held = {(lease.run, lease.model): lease for lease in leases}
    by_version: dict[tuple[str, str], dict[int, RunStatistics]] = {}
    for part in statistics:
        of_run = by_version.setdefault((part.run, part.model), {})
        of_run.setdefault(part.version, RunStatistics(*part.key, last_seen=part.last_seen)).merge(part)
    statuses = [_status(*key, held.get(key), by_version.get(key, {}), now) for key in held.keys() | by_version.keys()]
    return sorted(statuses, key=lambda status: (-status.last_seen, status.run, status.model))


def version_and_arm(run: str, model: str, lease: Lease | None, statuses: Sequence[RunStatus]) -> tuple[int, str]:
    """What a run trains with: the version it was given, also when that has ended, else the one that scored it last.

    The arm is empty where no split chose it. Raises RunNotFound where neither is known.
    """
    if lease is not None:
        return lease.version, lease.arm or ""
    for status in statuses:
        return status.version, ""
    raise RunNotFound(f"No run {run!r} has registered for {model!r} or been scored by it; is the name right?")


def _status(run: str, model: str, lease: Lease | None, by_version: dict[int, RunStatistics], now: float) -> RunStatus:
    parts = by_version.values()
    last = max(parts, key=lambda part: part.last_seen, default=None)
    if last is None:
        assert lease is not None  # the key came from one of both
        last = RunStatistics(run, model, lease.version, last_seen=lease.last_seen)
    is_held = lease is not None and lease.version == last.version
    active = lease if lease is not None and lease.is_active(now) else None
    rates = [part.rates(now) for part in parts]
    return RunStatus(
        run=run,
        model=model,
        version=last.version,
        arm=lease.arm if lease is not None and is_held else None,
        items=sum(part.num_items for part in parts),
        tokens=sum(part.num_tokens for part in parts),
        items_per_s=sum(items for items, _ in rates),
        tokens_per_s=sum(tokens for _, tokens in rates),
        version_items=last.num_items,
        score_mean=last.score_mean,
        score_std=last.score_std,
        last_seen=max(last.last_seen, lease.last_seen if lease is not None else 0.0),
        lease_version=active.version if active is not None else None,
        lease_expires_at=active.expires_at if active is not None else None,
    )
