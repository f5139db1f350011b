"""How commands talk to a running server: one method an action, plain dictionaries back, AdminError when it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from rm_api.v1 import (
    errors_pb2,
    experiments_pb2,
    experiments_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    scoring_pb2_grpc,
)

from rm_server.api.admin_explain import ExplainActions
from rm_server.api.admin_outcomes import OutcomeActions
from rm_server.api.admin_runs import RunActions
from rm_server.api.error_map import ERROR_METADATA_KEY
from rm_server.config import is_loopback

Row = dict[str, Any]
"""A thing as `--json` prints it. Times are ISO 8601 in UTC; what is unset is None."""

_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""gRPC asks other machines through the first that is set."""


class AdminError(Exception):
    """The server refused, or could not be reached. ``reason``: as in the contract, without its prefix; may be empty."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Admin(RunActions, OutcomeActions, ExplainActions):
    """A connection to one server. ``ca``: the certificate authority of its TLS; without it the line is plain.
    ``cert`` and ``key``: what this side shows of itself, where the server asks for it.

    ``timeout_s`` is for what takes no time to speak of. Registering, what may load or unload a version (a label, a
    rollback, a promotion, a shadow, a split, an explanation, too) and reports take as long as they take.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str = "",
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._target = target
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._timeout_s = timeout_s
        host = target.removeprefix("dns:///").rpartition(":")[0].strip("[]")
        options = (
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", int(not is_loopback(host))),
        )
        if ca is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            pair = (_read(key), _read(cert)) if cert is not None and key is not None else (None, None)
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(_read(ca), *pair), options)
        self._models = models_pb2_grpc.ModelServiceStub(self._channel)
        self._experiments = experiments_pb2_grpc.ExperimentServiceStub(self._channel)
        self._scoring = scoring_pb2_grpc.ScoringServiceStub(self._channel)

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    # --- models ---

    def models(self, model: str = "") -> list[Row]:
        """All models, or one, with their versions."""
        response = self._call(self._models.ListModels, models_pb2.ListModelsRequest(model=model))
        return [_model(message) for message in response.models]

    def register(self, model: str, path: Path, comment: str = "") -> tuple[Row, bool]:
        """The version that the folder became, and whether it is new."""
        request = models_pb2.RegisterVersionRequest(model=model, path=str(path.absolute()), comment=comment)
        response = self._call(self._models.RegisterVersion, request, is_limited=False)
        return _version(response.version), response.created

    def load(self, selector: str, precision: str = "", *, comment: str = "") -> Row:
        """The version, which serves now."""
        request = models_pb2.LoadVersionRequest(selector=selector, precision=precision, comment=comment)
        return _version(self._call(self._models.LoadVersion, request, is_limited=False).version)

    def unload(self, selector: str, *, force: bool = False, comment: str = "") -> Row:
        """The version, which is out of memory now."""
        request = models_pb2.UnloadVersionRequest(selector=selector, force=force, comment=comment)
        return _version(self._call(self._models.UnloadVersion, request, is_limited=False).version)

    def delete(self, model: str, version: int, *, comment: str = "") -> None:
        """Takes a version out of the catalog."""
        request = models_pb2.DeleteVersionRequest(model=model, version=version, comment=comment)
        self._call(self._models.DeleteVersion, request)

    def set_label(
        self, model: str, label: str, version: int, *, load: bool, unload_previous: bool, comment: str = ""
    ) -> int | None:
        """Moves a label; what it named before."""
        request = models_pb2.SetLabelRequest(
            model=model, label=label, version=version, load=load, unload_previous=unload_previous, comment=comment
        )
        return self._call(self._models.SetLabel, request, is_limited=False).previous_version or None

    def remove_label(self, model: str, label: str, *, comment: str = "") -> int:
        """Takes a label away; what it named."""
        request = models_pb2.RemoveLabelRequest(model=model, label=label, comment=comment)
        return int(self._call(self._models.RemoveLabel, request).previous_version)

    def rollback(self, model: str, label: str, *, comment: str = "") -> tuple[int, int]:
        """Lets a label name what it named before: (version until now, version from now on)."""
        request = models_pb2.RollbackLabelRequest(model=model, label=label, comment=comment)
        response = self._call(self._models.RollbackLabel, request, is_limited=False)
        return int(response.previous_version), int(response.version.version)

    def promote(self, model: str, version: int, label: str, *, force: bool, dry_run: bool, comment: str = "") -> Row:
        """Moves a label if the gate allows it, or ``force`` says so; AdminError with its objections otherwise."""
        request = models_pb2.PromoteVersionRequest(
            model=model, version=version, label=label, force=force, dry_run=dry_run, comment=comment
        )
        response = self._call(self._models.PromoteVersion, request, is_limited=False)
        return {
            "model": model,
            "label": label,
            "version": response.version.version,
            "previous_version": response.previous_version or None,
            "allowed": response.allowed,
            "promoted": response.promoted,
            "findings": list(response.findings),
        }

    def history(self, model: str = "", limit: int = 0) -> list[Row]:
        """The last changes, newest first."""
        request = models_pb2.ListHistoryRequest(model=model, limit=limit)
        return [_change(entry) for entry in self._call(self._models.ListHistory, request).entries]

    def watch(self, model: str = "") -> Iterator[Row]:
        """The present state of each model, then each change, until the server stops."""
        request = models_pb2.WatchModelsRequest(model=model)
        with self._translated():
            for message in self._models.WatchModels(request, metadata=self._metadata):
                change = models_pb2.WatchModelsResponse.Change.Name(message.change).removeprefix("CHANGE_")
                yield {"change": change.lower(), "model": _model(message.model)}

    # --- server ---

    def status(self) -> Row:
        """What the server is and does."""
        message = self._call(self._models.GetServerStatus, models_pb2.GetServerStatusRequest())
        return {
            "server_version": message.server_version,
            "device": message.device,
            "start_time": _time(message.start_time),
            "workers": message.workers,
            "threads_per_worker": message.threads_per_worker,
            "queued_items": message.queued_items,
            "queued_tokens": message.queued_tokens,
            "scored_items": message.scored_items,
            "draining": message.draining,
        }

    # --- shadows ---

    def set_shadow(self, model: str, version: int, share: float, *, load: bool, comment: str = "") -> Row:
        """The shadow as it is now."""
        shadow = experiments_pb2.Shadow(model=model, version=version, share=share)
        request = experiments_pb2.SetShadowRequest(shadow=shadow, load=load, comment=comment)
        return _shadow(self._call(self._experiments.SetShadow, request, is_limited=False).shadow)

    def shadows(self, model: str = "") -> list[Row]:
        """The shadows of a model, or all."""
        response = self._call(self._experiments.ListShadows, experiments_pb2.ListShadowsRequest(model=model))
        return [_shadow(message) for message in response.shadows]

    def remove_shadow(self, model: str, version: int, *, comment: str = "") -> None:
        """Ends a shadow."""
        request = experiments_pb2.RemoveShadowRequest(model=model, version=version, comment=comment)
        self._call(self._experiments.RemoveShadow, request)

    def shadow_report(self, model: str, version: int, against: int | None = None) -> Row:
        """How a shadow compares with a version; None: with the one that callers got most often."""
        request = experiments_pb2.GetShadowReportRequest(model=model, version=version, against_version=against or 0)
        report: Row = json.loads(self._call(self._experiments.GetShadowReport, request, is_limited=False).report_json)
        return report

    # --- how ---

    def _call(self, method: Any, request: Any, *, is_limited: bool = True) -> Any:
        """``is_limited`` False: it takes as long as it takes."""
        with self._translated():
            return method(request, timeout=self._timeout_s if is_limited else None, metadata=self._metadata)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            for key, value in error.trailing_metadata() or ():
                if key == ERROR_METADATA_KEY:
                    refusal = errors_pb2.Error.FromString(value)
                    reason = errors_pb2.ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")
                    raise AdminError(refusal.message, reason) from None
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise AdminError(f"No server answers at {self._target}: {error.details()}. {_look_at()}") from None
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise AdminError(
                    f"{self._target} has not answered within {self._timeout_s:g} s. {_look_at()}"
                ) from None
            raise AdminError(f"{self._target} answers {error.code().name}: {error.details()}.") from None


def _look_at() -> str:
    """What to look at where nobody answers."""
    advice = (
        "Is it the gRPC address of a running rm-server, and does that one speak TLS (--ca), or want a certificate of "
        "its callers (--cert, --key)?"
    )
    if proxy := next(filter(os.environ.get, _PROXY_VARIABLES), None):
        advice += f" {proxy} is set, so gRPC asks other machines through it, but for those that no_proxy names."
    return advice


def _model(message: models_pb2.Model) -> Row:
    return {
        "model": message.name,
        "labels": dict(sorted(message.labels.items())),
        "versions": [_version(version) for version in message.versions],
    }


def _version(message: models_pb2.Version) -> Row:
    calibration = message.calibration
    return {
        "model": message.model,
        "version": message.version,
        "digest": message.digest,
        "kind": message.kind,
        "state": models_pb2.VersionState.Name(message.state).removeprefix("VERSION_STATE_").lower(),
        "error": message.error.message if message.HasField("error") else None,
        "labels": list(message.labels),
        "create_time": _time(message.create_time),
        "created_by": message.created_by,
        "comment": message.comment,
        "memory_bytes": message.memory_bytes,
        "max_tokens": message.max_tokens,
        "parts": list(message.parts),
        "precision": message.precision or None,
        "calibration": {"digest": calibration.digest, "gain": calibration.gain, "bias": calibration.bias}
        if message.HasField("calibration")
        else None,
    }


def _change(message: models_pb2.HistoryEntry) -> Row:
    return {
        "time": _time(message.time),
        "actor": message.actor,
        "action": message.action,
        "model": message.model,
        "version": message.version or None,
        "detail": message.detail,
        "comment": message.comment,
    }


def _shadow(message: experiments_pb2.Shadow) -> Row:
    return {
        "model": message.model,
        "version": message.version,
        "share": message.share,
        "create_time": _time(message.create_time),
    }


def _time(message: Timestamp) -> str:
    return message.ToJsonString()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AdminError(f"{path} cannot be read: {error.strerror}.") from error
