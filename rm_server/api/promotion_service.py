"""ModelService's promotion: the gate is asked, and the label moves if it has no objection, or somebody insists."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from rm_api.v1 import models_pb2

from rm_server.api.calls import Call
from rm_server.api.describe import version_message
from rm_server.engine.versions import VersionManager
from rm_server.registry.catalog import Catalog
from rm_server.registry.names import check_label
from rm_server.scoring.comparison.promotion import check_reason, decide, refusal, spoken
from rm_server.scoring.comparison.promotion_evidence import read_evidence
from rm_server.scoring.routing import DEFAULT_LABEL


class PromotionService:
    """``flush`` brings the shadow's pairs that this server has in memory into the catalog."""

    def __init__(self, versions: VersionManager, catalog: Catalog, flush: Callable[[], Awaitable[None]]) -> None:
        self._versions = versions
        self._catalog = catalog
        self._flush = flush

    async def PromoteVersion(
        self, request: models_pb2.PromoteVersionRequest, call: Call
    ) -> models_pb2.PromoteVersionResponse:
        """Asks the gate, and moves the label. Who may force is in the table of `roles`."""
        label = request.label or DEFAULT_LABEL
        check_label(label)
        check_reason(request.force, request.comment)
        key = (request.model, request.version)
        await self._flush()
        evidence = await asyncio.to_thread(read_evidence, self._catalog, *key, label)
        call.key = key  # not before: a version that there is not shall be no label of a metric
        await self._versions.refresh()
        decision = decide(evidence)
        present = None if evidence.present is None else evidence.present.version
        if not request.dry_run:
            if not (decision.is_allowed or request.force):
                raise refusal(evidence, decision)
            await self._versions.promote(
                key, label, expected=present, why=spoken(decision), actor=call.actor, comment=request.comment
            )
        return models_pb2.PromoteVersionResponse(
            version=version_message(self._versions, self._versions.snapshot.versions[key]),
            previous_version=present or 0,
            allowed=decision.is_allowed,
            findings=decision.findings,
            promoted=not request.dry_run and present != request.version,
        )
