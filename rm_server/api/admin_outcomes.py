"""What commands ask a server of outcomes; mixed into Admin."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rm_api.v1 import experiments_pb2

from rm_server.scoring.comparison.experiment_evidence import Evidence

Row = dict[str, Any]


class OutcomeActions:
    """Needs what Admin has: the stubs, and the way to call them."""

    _experiments: Any
    _call: Callable[..., Any]

    def report_outcome(self, run: str, model: str, metric: str, value: float, *, step: int, samples: int) -> Row:
        """Keeps an outcome; the version and arm that the run had."""
        request = experiments_pb2.ReportOutcomeRequest(
            run=run, model=model, metric=metric, value=value, step=step, num_samples=samples
        )
        response = self._call(self._experiments.ReportOutcome, request)
        return {"run": run, "model": model, "version": response.version, "arm": response.arm}

    def experiment_evidence(self, model: str) -> Evidence:
        """The outcomes of a model's runs, and what is known of its runs."""
        request = experiments_pb2.GetExperimentReportRequest(model=model)
        response = self._call(self._experiments.GetExperimentReport, request, is_limited=False)
        return Evidence.from_json(json.loads(response.report_json)["evidence"])
