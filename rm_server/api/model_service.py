"""ModelService: what operators call to register, load, unload and label versions while the server serves."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib.metadata import version as package_version
from pathlib import Path

from rm_api.v1 import models_pb2

from rm_server.api.calls import Call, Calls
from rm_server.api.describe import history_message, model_message, timestamp, version_message
from rm_server.api.rpc import Send
from rm_server.engine.engine import Engine
from rm_server.engine.versions import VersionManager
from rm_server.errors import CatalogUnavailable, InvalidRequest
from rm_server.registry.catalog import Catalog
from rm_server.registry.manifest import PRECISIONS, Precision
from rm_server.registry.records import VersionKey, VersionRecord
from rm_server.scoring.routing import DEFAULT_LABEL, resolve
from rm_server.scoring.selector import parse

DEFAULT_HISTORY = 100
MAX_HISTORY = 1000
"""Entries of one answer: it stays far below the size that a message may have."""
WatchModelsResponse = models_pb2.WatchModelsResponse
_CHANGES = {
    "VERSIONS": WatchModelsResponse.CHANGE_VERSIONS,
    "STATE": WatchModelsResponse.CHANGE_STATE,
    "LABELS": WatchModelsResponse.CHANGE_LABELS,
}


class ModelService:
    """Operators' calls. What reads evaluations and history asks the catalog itself; all else goes by the manager."""

    def __init__(self, versions: VersionManager, catalog: Catalog, engine: Engine, calls: Calls) -> None:
        self._versions = versions
        self._catalog = catalog
        self._engine = engine
        self._calls = calls

    async def RegisterVersion(
        self, request: models_pb2.RegisterVersionRequest, call: Call
    ) -> models_pb2.RegisterVersionResponse:
        """Copies a folder of this machine in as the model's next version."""
        if not request.path:
            raise InvalidRequest("`path` is empty; a folder on the server's machine was expected.")
        record, created = await self._versions.register(
            request.model, Path(request.path), call.actor, request.comment, call.permit.check_model
        )
        call.key = record.key
        return models_pb2.RegisterVersionResponse(version=version_message(self._versions, record), created=created)

    async def ListModels(self, request: models_pb2.ListModelsRequest, call: Call) -> models_pb2.ListModelsResponse:
        """All models, or one."""
        await self._look_again()
        response = models_pb2.ListModelsResponse()
        for name in self._names(request.model):
            response.models.append(self._model(name))
            await asyncio.sleep(0)  # of many it takes a while, for which no call should wait
        return response

    async def GetVersion(self, request: models_pb2.GetVersionRequest, call: Call) -> models_pb2.GetVersionResponse:
        """One version with its evaluations."""
        record = await self._record(request.selector)
        call.key = record.key
        evaluations = await asyncio.to_thread(self._catalog.evaluations, *record.key)
        return models_pb2.GetVersionResponse(version=version_message(self._versions, record, evaluations))

    async def LoadVersion(self, request: models_pb2.LoadVersionRequest, call: Call) -> models_pb2.LoadVersionResponse:
        """Loads, warms up and checks; answers when the version serves."""
        record = await self._record(request.selector)
        call.key = record.key
        await self._versions.load(record.key, _precision(request.precision), call.actor, request.comment)
        return models_pb2.LoadVersionResponse(version=version_message(self._versions, record))

    async def UnloadVersion(
        self, request: models_pb2.UnloadVersionRequest, call: Call
    ) -> models_pb2.UnloadVersionResponse:
        """Lets a version finish its work, then frees its memory."""
        record = await self._record(request.selector)
        call.key = record.key
        await self._versions.unload(record.key, request.force, call.actor, request.comment)
        return models_pb2.UnloadVersionResponse(version=version_message(self._versions, record))

    async def SetLabel(self, request: models_pb2.SetLabelRequest, call: Call) -> models_pb2.SetLabelResponse:
        """Moves a label in one step."""
        await self._look_again()
        key = (request.model, request.version)
        previous = await self._versions.set_label(
            request.model,
            request.label,
            request.version,
            load=request.load,
            unload_previous=request.unload_previous,
            actor=call.actor,
            comment=request.comment,
        )
        call.key = key  # not before: a version that there is not shall be no label of a metric
        return models_pb2.SetLabelResponse(version=self._labelled(key), previous_version=previous or 0)

    async def RemoveLabel(self, request: models_pb2.RemoveLabelRequest, call: Call) -> models_pb2.RemoveLabelResponse:
        """Takes a label away."""
        previous = await self._versions.remove_label(request.model, request.label, call.actor, request.comment)
        return models_pb2.RemoveLabelResponse(previous_version=previous)

    async def RollbackLabel(
        self, request: models_pb2.RollbackLabelRequest, call: Call
    ) -> models_pb2.RollbackLabelResponse:
        """Lets a label name what it named before."""
        previous, version = await self._versions.rollback(
            request.model, request.label or DEFAULT_LABEL, call.actor, request.comment
        )
        call.key = key = (request.model, version)
        return models_pb2.RollbackLabelResponse(version=self._labelled(key), previous_version=previous)

    async def DeleteVersion(
        self, request: models_pb2.DeleteVersionRequest, call: Call
    ) -> models_pb2.DeleteVersionResponse:
        """Takes a version out of the catalog."""
        await self._look_again()
        await self._versions.delete((request.model, request.version), call.actor, request.comment)
        return models_pb2.DeleteVersionResponse()

    async def WatchModels(self, request: models_pb2.WatchModelsRequest, call: Call, send: Send) -> None:
        """The present state, then every change; a slow reader gets the same change of a model once."""
        subscription = self._versions.subscribe()
        for name in self._names(request.model):
            await send(WatchModelsResponse(change=WatchModelsResponse.CHANGE_INITIAL, model=self._model(name)))
        async for change in subscription:
            if request.model in ("", change.model):
                await send(WatchModelsResponse(change=_CHANGES[change.kind], model=self._model(change.model)))

    async def ListHistory(self, request: models_pb2.ListHistoryRequest, call: Call) -> models_pb2.ListHistoryResponse:
        """The last changes."""
        limit = min(request.limit or DEFAULT_HISTORY, MAX_HISTORY)
        records = await asyncio.to_thread(self._catalog.history, request.model or None, limit)
        return models_pb2.ListHistoryResponse(entries=[history_message(record) for record in records])

    async def GetServerStatus(
        self, request: models_pb2.GetServerStatusRequest, call: Call
    ) -> models_pb2.GetServerStatusResponse:
        """How the server is."""
        settings, queue, start = self._engine.settings, self._engine.queue_stats, self._calls.open_time
        return models_pb2.GetServerStatusResponse(
            server_version=package_version("rm-service"),
            device=settings.device,
            start_time=timestamp(start) if start is not None else None,
            workers=settings.workers,
            threads_per_worker=self._engine.threads_per_worker,
            queued_items=queue.items,
            queued_tokens=queue.tokens,
            scored_items=self._engine.num_scored_items,
            draining=self._calls.is_draining,
        )

    async def _look_again(self) -> None:
        """What `rm-server register --home` did a moment ago is found; without the database, what is known counts."""
        with suppress(CatalogUnavailable):
            await self._versions.refresh()

    def _names(self, model: str) -> tuple[str, ...]:
        snapshot = self._versions.snapshot
        snapshot.require_known(model)
        return (model,) if model else snapshot.models()

    async def _record(self, selector: str) -> VersionRecord:
        """As it is before what is asked for: another server may delete the version meanwhile."""
        await self._look_again()
        snapshot = self._versions.snapshot
        return snapshot.versions[resolve(parse(selector), snapshot, None).key]

    def _model(self, name: str) -> models_pb2.Model:
        return model_message(self._versions, name)

    def _labelled(self, key: VersionKey) -> models_pb2.Version:
        return version_message(self._versions, self._versions.snapshot.versions[key])


def _precision(text: str) -> Precision | None:
    if not text:
        return None
    for precision in PRECISIONS:
        if text == precision:
            return precision
    raise InvalidRequest(
        f"precision is {text!r}; known are {', '.join(PRECISIONS)}, and empty: its serving profile's or the server's."
    )
