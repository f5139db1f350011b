"""Which versions a server must have loaded whatever an operator asks, and why: shadows, splits, pins and leases."""

from __future__ import annotations

from collections.abc import Mapping

from rm_server.registry.records import Snapshot, VersionKey
from rm_server.registry.runs import Holders


def needs_by_version(snapshot: Snapshot, holders: Mapping[VersionKey, Holders]) -> dict[VersionKey, str]:
    """Who needs each version, and what to do about it, in words for people. ``holders``: the leases of all servers.

    Versions that are not in the catalog are left out: a lease may outlive what it names.
    """
    needs: dict[VersionKey, str] = {}
    # What somebody set says more than the runs that follow from it, so it comes later and wins.
    for key, holder in holders.items():
        more = f" and {holder.num_runs - 1} more" if holder.num_runs > 1 else ""
        needs[key] = (
            f"leases on it: {holder.first}{more}. End the runs (`rm-server end-run`), or wait until the leases expire."
        )
    for key in snapshot.shadows:
        needs[key] = "it is a shadow of its model's traffic. Remove the shadow."
    for (model, run), version in snapshot.pins.items():
        needs[model, version] = f"the run {run} is pinned to it. Remove the pin."
    for model, split in snapshot.splits.items():
        for arm in split.arms:
            needs[model, arm.version] = f"it is the arm {arm.name} of the model's split. Change the split."
    return {key: need for key, need in needs.items() if key in snapshot.versions}
