"""What an experiment's report is made from, as plain values that travel as JSON: outcomes by run, runs by arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rm_server.registry.catalog import Catalog
from rm_server.registry.outcomes import Outcome, Records, experiment_records
from rm_server.registry.records import Split
from rm_server.scoring.split import shares


@dataclass(frozen=True, slots=True)
class Point:
    """One outcome, with the version and arm that the run had when it was reported. ``time`` as ISO 8601."""

    metric: str
    step: int
    value: float
    num_samples: int
    version: int
    arm: str
    time: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run with its outcomes, earliest first.

    ``arm`` and ``version`` are those of its first outcome, and it counts for them whatever came later (intention to
    treat). ``versions``: all that scored it or that its outcomes name.
    """

    run: str
    arm: str
    version: int
    versions: tuple[int, ...]
    points: tuple[Point, ...]

    @property
    def has_moved(self) -> bool:
        """Whether it was scored by another version, too, or went to another arm."""
        return len(self.versions) > 1 or any(point.arm != self.arm for point in self.points)


@dataclass(frozen=True, slots=True)
class ArmCount:
    """Runs of an arm of the present split that registered since it was set, and how many its shares let expect.

    ``num_reporting``: of those, with an outcome; ``expected_reporting``: by the shares when they registered.
    """

    arm: str
    num_runs: int
    expected_runs: float
    num_reporting: int
    expected_reporting: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one model. ``time``: when it was read. ``arms`` empty: the model has no split now."""

    model: str
    time: str
    runs: tuple[RunRecord, ...]
    arms: tuple[ArmCount, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Evidence:
        """What `to_json` wrote, perhaps through JSON."""
        return cls(
            plain["model"],
            plain["time"],
            tuple(
                RunRecord(
                    row["run"],
                    row["arm"],
                    row["version"],
                    tuple(row["versions"]),
                    tuple(Point(**point) for point in row["points"]),
                )
                for row in plain["runs"]
            ),
            tuple(ArmCount(**row) for row in plain["arms"]),
        )


def read_evidence(catalog: Catalog, model: str, now: datetime | None = None) -> Evidence:
    """From the catalog. Raises ModelNotFound."""
    records = experiment_records(catalog, model)
    runs = _runs(records)
    return Evidence(model, _text(now or datetime.now(UTC)), runs, _counts(records, {run.run for run in runs}))


def _runs(records: Records) -> tuple[RunRecord, ...]:
    by_run: dict[str, list[Outcome]] = {}
    for outcome in records.outcomes:
        by_run.setdefault(outcome.run, []).append(outcome)
    return tuple(_run(run, outcomes, records.versions.get(run, ())) for run, outcomes in sorted(by_run.items()))


def _run(run: str, outcomes: list[Outcome], scored_by: Iterable[int]) -> RunRecord:
    first = outcomes[0]
    return RunRecord(
        run=run,
        arm=first.arm,
        version=first.version,
        versions=tuple(sorted({*scored_by, *(outcome.version for outcome in outcomes)})),
        points=tuple(
            Point(
                metric=outcome.metric,
                step=outcome.step,
                value=outcome.value,
                num_samples=outcome.num_samples,
                version=outcome.version,
                arm=outcome.arm,
                time=_text(outcome.time),
            )
            for outcome in outcomes
        ),
    )


def _counts(records: Records, reporting: set[str]) -> tuple[ArmCount, ...]:
    split = records.split
    if split is None:
        return ()
    names = {arm.name for arm in split.arms}
    counted = [given for given in records.registrations if given.arm in names and given.time >= split.update_time]
    num_runs = Counter(given.arm for given in counted)
    num_reporting = Counter(given.arm for given in counted if given.run in reporting)
    expected = _expected(split, (given.time for given in counted))
    expected_reporting = _expected(split, (given.time for given in counted if given.run in reporting))
    return tuple(
        ArmCount(
            arm.name, num_runs[arm.name], expected[arm.name], num_reporting[arm.name], expected_reporting[arm.name]
        )
        for arm in split.arms
    )


def _expected(split: Split, times: Iterable[datetime]) -> Counter[str]:
    """How many runs that registered then come to each arm: the sum of the shares of those moments."""
    expected: Counter[str] = Counter()
    for time in times:
        for arm, share in shares(split, time.timestamp()).items():
            expected[arm] += share  # type: ignore[assignment]  # a Counter of shares
    return expected


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
