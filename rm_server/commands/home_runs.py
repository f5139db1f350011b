"""Runs, splits and pins of a home, with no server asked, as api/admin_runs.py has them; mixed into HomeAdmin."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from rm_server.registry.catalog import Catalog
from rm_server.registry.records import Arm, Split
from rm_server.registry.runs import end_runs, list_runs
from rm_server.registry.splits import count_runs, remove_pin, remove_split, set_pin, set_split
from rm_server.scoring.run_status import RunStatus, run_statuses
from rm_server.scoring.split import shares

Row = dict[str, Any]


class HomeRuns:
    """Needs what HomeAdmin has. Servers on the catalog follow, and load what they have to."""

    _catalog: Catalog
    _actor: str

    def runs(self, model: str = "") -> list[Row]:
        """The training runs that the catalog knows, last seen first; running servers write every few seconds."""
        self._catalog.snapshot().require_known(model)
        now = time.time()
        return [_run(status) for status in run_statuses(*list_runs(self._catalog, model or None, None), now)]

    def end_run(self, run: str, model: str = "") -> None:
        """Ends the run's lease on a model, or all of its leases."""
        end_runs(self._catalog, run, model or None, time.time())

    def splits(self, model: str = "") -> Row:
        """``splits`` with the shares of this moment, and ``pins``."""
        snapshot = self._catalog.snapshot()
        snapshot.require_known(model)
        pins = [
            {"model": of, "run": run, "version": version}
            for (of, run), version in sorted(snapshot.pins.items())
            if model in ("", of)
        ]
        wanted = [split for of, split in sorted(snapshot.splits.items()) if model in ("", of)]
        return {"splits": [self._split(split) for split in wanted], "pins": pins}

    def set_split(self, model: str, arms: list[Arm], *, salt: str, load: bool, comment: str = "") -> Row:
        """Divides a model's runs. Servers load the arms' versions by themselves, whether or not ``load`` says so."""
        split = Split(model, tuple(arms), salt, datetime.now(UTC))
        return self._split(set_split(self._catalog, split, self._actor, comment))

    def remove_split(self, model: str, *, comment: str = "") -> None:
        """Ends a model's split."""
        remove_split(self._catalog, model, self._actor, comment)

    def set_pin(self, model: str, run: str, version: int, *, comment: str = "") -> None:
        """Gives one run a version when it asks next."""
        set_pin(self._catalog, run, model, version, self._actor, comment)

    def remove_pin(self, model: str, run: str, *, comment: str = "") -> None:
        """Takes a pin away."""
        remove_pin(self._catalog, run, model, self._actor, comment)

    def _split(self, split: Split) -> Row:
        share, num_runs = shares(split, time.time()), count_runs(self._catalog)
        return {
            "model": split.model,
            "salt": split.salt,
            "update_time": _text(split.update_time.timestamp()),
            "arms": [
                {
                    "arm": arm.name,
                    "version": arm.version,
                    "weight": arm.weight,
                    "ramp": [{"time": _text(point.time_s), "weight": point.weight} for point in arm.ramp],
                    "share": share[arm.name],
                    "num_runs": num_runs.get((split.model, arm.name), 0),
                }
                for arm in split.arms
            ],
        }


def _run(status: RunStatus) -> Row:
    return {
        "run": status.run,
        "model": status.model,
        "version": status.version,
        "arm": status.arm,
        "items": status.items,
        "tokens": status.tokens,
        "items_per_second": status.items_per_s,
        "tokens_per_second": status.tokens_per_s,
        "version_items": status.version_items,
        "score_mean": status.score_mean,
        "score_std": status.score_std,
        "last_seen_time": _text(status.last_seen),
        "lease_version": status.lease_version,
        "lease_expire_time": None if status.lease_expires_at is None else _text(status.lease_expires_at),
    }


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
