"""Outcomes of a home, with no server asked, as api/admin_outcomes.py has them; mixed into HomeAdmin."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from rm_server.registry.catalog import Catalog
from rm_server.registry.names import check_run
from rm_server.registry.outcomes import Outcome, put_outcome
from rm_server.registry.runs import find_run, list_runs
from rm_server.scoring.comparison.experiment_evidence import Evidence, read_evidence
from rm_server.scoring.run_status import run_statuses, version_and_arm

Row = dict[str, Any]


class HomeOutcomes:
    """Needs what HomeAdmin has. Servers on the catalog report the same at once."""

    _catalog: Catalog

    def report_outcome(self, run: str, model: str, metric: str, value: float, *, step: int, samples: int) -> Row:
        """Keeps an outcome; the version and arm that the run had."""
        check_run(run)
        known = run_statuses(*list_runs(self._catalog, model, run), time.time())
        version, arm = version_and_arm(run, model, find_run(self._catalog, run, model), known)
        put_outcome(self._catalog, Outcome(run, model, metric, step, version, arm, value, samples, datetime.now(UTC)))
        return {"run": run, "model": model, "version": version, "arm": arm}

    def experiment_evidence(self, model: str) -> Evidence:
        """The outcomes of a model's runs, and what is known of its runs."""
        return read_evidence(self._catalog, model)
