"""ExperimentService's outcomes: what came of a run, and what a model's runs say about their arms."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

from rm_api.v1 import experiments_pb2

from rm_server.api.calls import Call
from rm_server.registry.catalog import Catalog
from rm_server.registry.names import check_run
from rm_server.registry.outcomes import Outcome, check_outcome, put_outcome
from rm_server.registry.runs import find_run
from rm_server.scoring.comparison.experiment_evidence import read_evidence
from rm_server.scoring.comparison.experiment_report import ReportOptions, report
from rm_server.scoring.run_status import version_and_arm
from rm_server.scoring.runs import Runs


class OutcomeService:
    """Outcomes go to the catalog at once, so that every server reports the same."""

    def __init__(self, runs: Runs, catalog: Catalog) -> None:
        self._runs = runs
        self._catalog = catalog

    async def ReportOutcome(
        self, request: experiments_pb2.ReportOutcomeRequest, call: Call
    ) -> experiments_pb2.ReportOutcomeResponse:
        """Keeps it with the version and arm that the run has."""
        call.run = request.run
        check_run(request.run)
        check_outcome(request.metric, request.value, request.step, request.num_samples)
        lease = await asyncio.to_thread(find_run, self._catalog, request.run, request.model)
        known = await self._runs.statuses(request.model, request.run)
        version, arm = version_and_arm(request.run, request.model, lease, known)
        call.key = (request.model, version)
        outcome = Outcome(
            run=request.run,
            model=request.model,
            metric=request.metric,
            step=request.step,
            version=version,
            arm=arm,
            value=request.value,
            num_samples=request.num_samples,
            time=datetime.now(UTC),
        )
        await asyncio.to_thread(put_outcome, self._catalog, outcome)
        return experiments_pb2.ReportOutcomeResponse(version=version, arm=arm)

    async def GetExperimentReport(
        self, request: experiments_pb2.GetExperimentReportRequest, call: Call
    ) -> experiments_pb2.GetExperimentReportResponse:
        """The report with what it was made from, so that whoever asks can look at it with other options, too."""
        options = ReportOptions(metric=request.metric or None, baseline=request.baseline_arm or None)
        content = await asyncio.to_thread(self._report, request.model, options)
        return experiments_pb2.GetExperimentReportResponse(report_json=content)

    def _report(self, model: str, options: ReportOptions) -> str:
        return json.dumps(report(read_evidence(self._catalog, model), options))
