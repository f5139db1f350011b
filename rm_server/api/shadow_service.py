"""ExperimentService's shadows: set, listed, ended, and how their scores compare."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from rm_api.v1 import experiments_pb2

from rm_server.api.calls import Call
from rm_server.api.describe import timestamp
from rm_server.engine.versions import VersionManager
from rm_server.errors import VersionNotLoaded
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import Shadow, version_name
from rm_server.registry.shadows import check_share, remove_shadow, set_shadow
from rm_server.scoring.comparison.shadow_report import read_report


class ShadowService:
    """``flush`` brings the pairs that this server has in memory into the catalog."""

    def __init__(self, versions: VersionManager, catalog: Catalog, flush: Callable[[], Awaitable[None]]) -> None:
        self._versions = versions
        self._catalog = catalog
        self._flush = flush

    async def SetShadow(
        self, request: experiments_pb2.SetShadowRequest, call: Call
    ) -> experiments_pb2.SetShadowResponse:
        """Lets a loaded version shadow."""
        await self._versions.refresh()
        key = (request.shadow.model, request.shadow.version)
        check_share(request.shadow.share)  # before anything is loaded for it
        if request.load:
            await self._versions.load(key, None, call.actor)
        elif self._versions.state_of(key).state != "READY" and key in self._versions.snapshot.versions:
            raise VersionNotLoaded(f"{version_name(key)} is not loaded, so it cannot shadow. Load it first, or ask to.")
        shadow = await asyncio.to_thread(
            set_shadow, self._catalog, *key, request.shadow.share, call.actor, request.comment
        )
        call.key = key
        await self._versions.take_in()
        return experiments_pb2.SetShadowResponse(shadow=_message(shadow))

    async def ListShadows(
        self, request: experiments_pb2.ListShadowsRequest, call: Call
    ) -> experiments_pb2.ListShadowsResponse:
        """All, or a model's."""
        await self._versions.refresh()
        snapshot = self._versions.snapshot
        snapshot.require_known(request.model)
        shadows = [shadow for shadow in snapshot.shadows.values() if request.model in ("", shadow.model)]
        return experiments_pb2.ListShadowsResponse(shadows=[_message(shadow) for shadow in shadows])

    async def RemoveShadow(
        self, request: experiments_pb2.RemoveShadowRequest, call: Call
    ) -> experiments_pb2.RemoveShadowResponse:
        """Ends a shadow."""
        await asyncio.to_thread(
            remove_shadow, self._catalog, request.model, request.version, call.actor, request.comment
        )
        call.key = (request.model, request.version)
        await self._versions.take_in()
        return experiments_pb2.RemoveShadowResponse()

    async def GetShadowReport(
        self, request: experiments_pb2.GetShadowReportRequest, call: Call
    ) -> experiments_pb2.GetShadowReportResponse:
        """The report, with what this server has not written yet."""
        await self._flush()
        content = await asyncio.to_thread(
            read_report, self._catalog, request.model, request.version, request.against_version or None
        )
        call.key = (request.model, request.version)
        return experiments_pb2.GetShadowReportResponse(report_json=json.dumps(content))


def _message(shadow: Shadow) -> experiments_pb2.Shadow:
    return experiments_pb2.Shadow(
        model=shadow.model, version=shadow.version, share=shadow.share, create_time=timestamp(shadow.create_time)
    )
