"""The evidence for a promotion, read from the catalog: filed evaluations of both versions, and the shadow's pairs."""

from __future__ import annotations

import numpy as np

from rm_server.registry.catalog import Catalog
from rm_server.registry.records import Snapshot
from rm_server.registry.shadows import pairs_of
from rm_server.scoring.comparison.agreement import Agreement, agreement
from rm_server.scoring.comparison.filed_evaluation import read_filed
from rm_server.scoring.comparison.promotion import Candidate, Evidence


def read_evidence(catalog: Catalog, model: str, version: int, label: str) -> Evidence:
    """All that `promotion.decide` wants to know. Raises ModelNotFound, VersionNotFound, CatalogUnavailable."""
    catalog.evaluations(model, version)  # says what there is, where this is not
    snapshot = catalog.snapshot()
    present = snapshot.labels.get((model, label))
    return Evidence(
        model=model,
        label=label,
        new=_candidate(catalog, snapshot, model, version),
        present=None if present is None else _candidate(catalog, snapshot, model, present),
        shadow=None if present in (None, version) else _shadow(catalog, model, version, present),
    )


def _candidate(catalog: Catalog, snapshot: Snapshot, model: str, version: int) -> Candidate:
    record = snapshot.versions[model, version]
    filed = tuple(map(read_filed, catalog.evaluations(model, version)))
    return Candidate(version, record.digest, filed, record.calibration is not None)


def _shadow(catalog: Catalog, model: str, version: int, present: int | None) -> Agreement | None:
    pairs, _ = pairs_of(catalog, model, version, present)
    if not pairs:
        return None
    return agreement(
        np.array([pair.score for pair in pairs], np.float64),
        np.array([pair.shadow_score for pair in pairs], np.float64),
        [pair.group_key for pair in pairs],
    )
