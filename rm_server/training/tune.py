"""Measures the ways of computing a version on this machine, and writes the best into its serving profile.

Versions are immutable, and an ONNX version has a digest of its own. So nothing is swapped silently: for each version
(the one named, and those that were exported from it or that it was exported from) the best precision, workers, threads
and batch are found and kept, and it is said which version is the fastest. Who wants that one moves a label to it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rm_server.backends.device import device_kind, num_cores
from rm_server.errors import GoldenMismatch, UnsupportedArtifact
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.lora import base_folder, folder_with_base
from rm_server.registry.manifest import KINDS_WITHOUT_WEIGHTS, read_manifest
from rm_server.registry.records import ServingProfile, VersionKey, VersionRecord, version_name
from rm_server.registry.serving_profiles import set_serving_profile
from rm_server.registry.versions_by_name import find_version
from rm_server.training.export import EVALUATION_NAME as EXPORT_NAME
from rm_server.training.timing_crew import Candidate, Loaded, TimingCrew
from rm_server.training.tuning import (
    BATCH_TOKENS,
    USUAL_BATCH_TOKENS,
    Arm,
    Crew,
    Measured,
    best_batch,
    best_of_each,
    crews,
    hopeful,
    precisions,
)

logger = logging.getLogger(__name__)

EVALUATION_NAME = "tune"
NUM_ROUNDS = 3
_FIRST_TRY_TOKENS = 512
_FIRST_TRY_S = 0.1
_SHORTEST_S = 0.2
# What a version takes in a worker, in sizes of its files: weights, and their reordered copies.
_MEMORY_FACTOR = 2.5

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was measured and chosen. ``left_out``: ways that were not measured to the end, with the reason.

    ``ways``: precisions and crews of all versions, in turns, so that they can be held against one another. ``batches``:
    after that the best way of each version with other batches. ``profiles``: one for each version, that named first.
    """

    device: str
    seconds: float
    ways: tuple[Measured, ...]
    batches: tuple[Measured, ...]
    left_out: tuple[tuple[Arm, str], ...]
    golden_differences: Mapping[tuple[VersionKey, str], float | None]
    profiles: tuple[ServingProfile, ...]

    @property
    def best_ways(self) -> tuple[Measured, ...]:
        """The best way of each version, the fastest first."""
        return tuple(sorted(best_of_each(self.ways), key=lambda one: -one.tokens_per_s))

    def as_dict(self) -> dict[str, Any]:
        """For printing as JSON, and as it is filed."""
        return {
            "device": self.device,
            "seconds": round(self.seconds, 1),
            "ways": [self._row(one) for one in self.ways],
            "batches": [self._row(one) for one in self.batches],
            "left_out": [{**_arm(arm), "reason": reason} for arm, reason in self.left_out],
            "profiles": [_profile(profile) for profile in self.profiles],
            "fastest_version": self.best_ways[0].arm.key[1],
        }

    def _row(self, one: Measured) -> dict[str, Any]:
        return {
            **_arm(one.arm),
            "max_batch_tokens": one.max_batch_tokens,
            "tokens_per_s": one.tokens_per_s,
            "rates": list(one.rates),
            "golden_difference": self.golden_differences[one.arm.key, one.arm.precision],
        }


def tune_version(
    catalog: Catalog,
    artifacts: ArtifactStore,
    name: str,
    *,
    actor: str,
    device: str = "cpu",
    seconds: float = 60.0,
    max_workers: int | None = None,
    comment: str = "",
    say: Say = lambda text: None,
) -> Tuning:
    """Measures ``model@3`` or ``model@label`` and its relatives for about ``seconds``, and keeps the profiles.

    The ways take turns, round after round, so that what else the machine does meets all of them. A precision whose
    golden scores are outside its tolerance is left out. ``max_workers``: no more processes than that.

    Raises UnsupportedArtifact for a version without weights or a device that is not there, GoldenMismatch when no
    precision keeps the golden scores, and what `find_version` and loading raise. Nothing is kept then.
    """
    record = find_version(catalog.snapshot(), name)
    if record.kind in KINDS_WITHOUT_WEIGHTS:
        raise UnsupportedArtifact(
            f"{version_name(record.key)} is of the kind {record.kind}: there is nothing to choose."
        )
    kind = device_kind(device)
    start = time.perf_counter()
    candidates = [
        Candidate(relative.key, folder, manifest, precision)
        for relative in relatives(catalog, record)
        for folder in (folder_with_base(artifacts, relative.digest),)
        for manifest in (read_manifest(folder, relative.golden_json),)
        for precision in precisions(manifest, device.split(":")[0])
    ]
    found = _measure(candidates, _crews_that_fit(candidates, device, max_workers), device, start + seconds, say)
    profiles = _profiles(found, kind)
    if record.key not in [(profile.model, profile.version) for profile in profiles]:
        reasons = {reason for arm, reason in found.left_out if arm.key == record.key}
        raise GoldenMismatch(
            f"{version_name(record.key)} could be measured in no precision: {'; '.join(sorted(reasons))}"
        )
    profiles.sort(key=lambda profile: ((profile.model, profile.version) != record.key, profile.version))
    tuning = Tuning(
        device=kind,
        seconds=time.perf_counter() - start,
        ways=found.ways,
        batches=found.batches,
        left_out=found.left_out,
        golden_differences=found.golden_differences,
        profiles=tuple(profiles),
    )
    for profile in profiles:
        set_serving_profile(catalog, profile, actor, comment)
    catalog.file_evaluation(*record.key, EVALUATION_NAME, json.dumps(tuning.as_dict()), actor, comment)
    return tuning


def relatives(catalog: Catalog, record: VersionRecord) -> list[VersionRecord]:
    """The version, first, and those of its model that give the same scores: by the reports filed at their export."""
    snapshot = catalog.snapshot()
    versions = [snapshot.versions[record.model, number] for number in snapshot.versions_of(record.model)]
    sources = {version.key: _source_digest(catalog, version) or version.digest for version in versions}
    others = [one for one in versions if one.key != record.key and sources[one.key] == sources[record.key]]
    return [record, *others]


def _source_digest(catalog: Catalog, record: VersionRecord) -> str | None:
    if record.kind != "onnx":
        return None
    reports = [one.report_json for one in catalog.evaluations(*record.key) if one.name == EXPORT_NAME]
    return json.loads(reports[0]).get("source_digest") if reports else None


@dataclass(frozen=True, slots=True)
class _Found:
    ways: tuple[Measured, ...]
    batches: tuple[Measured, ...]
    left_out: tuple[tuple[Arm, str], ...]
    golden_differences: Mapping[tuple[VersionKey, str], float | None]


def _measure(candidates: Sequence[Candidate], sizes: Sequence[Crew], device: str, end: float, say: Say) -> _Found:
    by_way = {(candidate.key, candidate.precision): candidate for candidate in candidates}
    left_out: list[tuple[Arm, str]] = []
    with ExitStack() as stack:
        say(f"loading into {sum(workers for workers, _ in sizes)} processes")
        running = {size: stack.enter_context(TimingCrew(size, device)) for size in sizes}
        for crew in running.values():
            crew.begin_load(candidates)
        arms, differences = _usable(candidates, {size: crew.loaded() for size, crew in running.items()}, left_out)

        def rate(arm: Arm, max_batch_tokens: int, seconds: float) -> float:
            candidate = by_way[arm.key, arm.precision]
            return running[arm.crew].tokens_per_s(candidate, max_batch_tokens, seconds)

        say(f"trying {len(arms)} ways")
        for arm in arms:
            rate(arm, _FIRST_TRY_TOKENS, 0.0)  # warms up
        tried = _in_rounds([(arm, _FIRST_TRY_TOKENS) for arm in arms], rate, _FIRST_TRY_S)
        kept = hopeful(tried)
        left_out += [(one.arm, f"far slower in each of {NUM_ROUNDS} tries") for one in tried if one.arm not in kept]
        # An ONNX version computes a few items a run, whatever the batch.
        packed = {arm.key for arm in kept if by_way[arm.key, arm.precision].manifest.kind != "onnx"}
        num_slots = NUM_ROUNDS * (len(kept) + len(BATCH_TOKENS) * len(packed))
        slot_s = max(_SHORTEST_S, (end - time.perf_counter()) / max(1, num_slots))
        say(f"measuring {len(kept)} ways")
        ways = _in_rounds([(arm, USUAL_BATCH_TOKENS) for arm in kept], rate, slot_s, end)
        best = [one.arm for one in best_of_each(ways) if one.arm.key in packed]
        # On a slow machine the time is used up by now: then the usual batch stays.
        sizes_of_batches = BATCH_TOKENS if time.perf_counter() < end else ()
        say(
            f"measuring {len(sizes_of_batches)} sizes of batches"
            if sizes_of_batches
            else "no time is left to measure other batches (--seconds)"
        )
        batches = _in_rounds([(arm, tokens) for arm in best for tokens in sizes_of_batches], rate, slot_s, end)
    return _Found(tuple(ways), tuple(batches), tuple(left_out), differences)


def _usable(
    candidates: Sequence[Candidate], loaded: Mapping[Crew, Sequence[Loaded]], left_out: list[tuple[Arm, str]]
) -> tuple[list[Arm], dict[tuple[VersionKey, str], float | None]]:
    """The arms that could be loaded and keep their golden scores; the others go to ``left_out``."""
    arms: list[Arm] = []
    differences: dict[tuple[VersionKey, str], float | None] = {}
    for size, outcomes in loaded.items():
        for candidate, outcome in zip(candidates, outcomes, strict=True):
            arm = Arm(candidate.key, candidate.precision, size)
            tolerance = candidate.manifest.tolerance.get(candidate.precision, 0.0)
            difference = outcome.golden_difference
            if outcome.error:
                left_out.append((arm, outcome.error))
            elif difference is not None and not difference <= tolerance:
                left_out.append((arm, f"golden scores are up to {difference:.2g} off, and {tolerance:g} is allowed"))
            else:
                arms.append(arm)
                differences[candidate.key, candidate.precision] = difference
    return arms, differences


def _in_rounds(
    ways: Sequence[tuple[Arm, int]],
    rate: Callable[[Arm, int, float], float],
    seconds: float,
    end: float = math.inf,
) -> list[Measured]:
    """Each way in each round; the last rounds are left out when the time is over, for a batch may outlast its slot."""
    rates: defaultdict[tuple[Arm, int], list[float]] = defaultdict(list)
    for _ in range(NUM_ROUNDS):
        for way in ways:
            rates[way].append(rate(*way, seconds))
        if time.perf_counter() > end:
            break
    return [Measured(*way, tuple(rates[way])) for way in ways]


def _profiles(found: _Found, kind: str) -> list[ServingProfile]:
    profiles = []
    for best in best_of_each(found.ways):
        batches = [one for one in found.batches if one.arm == best.arm]
        chosen = best_batch(batches) if batches else best
        workers, threads = chosen.arm.crew
        profiles.append(
            ServingProfile(
                *chosen.arm.key,
                device=kind,
                precision=chosen.arm.precision,
                workers=workers,
                threads_per_worker=threads,
                max_batch_tokens=chosen.max_batch_tokens,
                tokens_per_s=chosen.tokens_per_s,
            )
        )
    return profiles


def _crews_that_fit(candidates: Sequence[Candidate], device: str, max_workers: int | None) -> list[Crew]:
    """All workers of all crews hold all versions at once; the smallest crew is tried in any case."""
    sizes = [crew for crew in crews(device.split(":")[0], num_cores()) if crew[0] <= (max_workers or crew[0])]
    folders = [*(one.folder for one in candidates), *(base_folder(one.folder) for one in candidates if _is_lora(one))]
    num_bytes = sum(path.stat().st_size for folder in folders for path in folder.iterdir() if path.is_file())
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fitting: list[Crew] = []
    for crew in sizes:
        num_workers = sum(workers for workers, _ in (*fitting, crew))
        if not fitting or num_workers * num_bytes * _MEMORY_FACTOR <= free_bytes:
            fitting.append(crew)
        else:
            logger.warning("%d × %d threads are not tried: %.1f GB are free.", *crew, free_bytes / 1e9)
    return fitting


def _is_lora(candidate: Candidate) -> bool:
    return candidate.manifest.kind == "lora"


def _arm(arm: Arm) -> dict[str, Any]:
    workers, threads = arm.crew
    return {
        "version": arm.key[1],
        "precision": arm.precision,
        "workers": workers,
        "threads_per_worker": threads,
    }


def _profile(profile: ServingProfile) -> dict[str, Any]:
    names = ("model", "version", "precision", "workers", "threads_per_worker", "max_batch_tokens", "tokens_per_s")
    return {name: getattr(profile, name) for name in names}
