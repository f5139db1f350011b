"""HTTP: metrics, probes, and scoring as OpenRLHF's and vLLM's clients ask for it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from rm_server.api import http_shapes
from rm_server.api.access import Access, Identities, Permit, http_identities
from rm_server.api.calls import Call, Calls, trace_context
from rm_server.api.error_map import outcome_of
from rm_server.api.health import Missing, Readiness
from rm_server.api.roles import METRICS_WITH_TOKEN, HttpScoring, Rule, rule_of
from rm_server.errors import InvalidRequest, MalformedRequest, RequestTooLarge, RmError
from rm_server.metrics import Metrics
from rm_server.scoring.scorer import ScoreAnswer, ScoreCall, Scorer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_ANY_SELECTOR = "{selector:.+}"  # a model's name may have slashes


class HttpService:
    """``default_model``: the selector behind the bare paths; empty: they want one in the path or the body."""

    def __init__(
        self,
        scorer: Scorer,
        calls: Calls,
        access: Access,
        readiness: Readiness,
        metrics: Metrics,
        *,
        default_model: str,
        max_body_bytes: int,
        metrics_need_token: bool = False,
    ) -> None:
        self._scorer = scorer
        self._calls = calls
        self._access = access
        self._readiness = readiness
        self._metrics = metrics
        self._default_model = default_model
        self._max_body_bytes = max_body_bytes
        self._metrics_need_token = metrics_need_token
        # One of its own: those that all share may be waiting for a catalog, which metrics should tell of.
        self._scrapes = ThreadPoolExecutor(1, thread_name_prefix="scrape")

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=self._max_body_bytes, middlewares=[_errors_as_json])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._scrape),
                web.post("/get_reward", self._get_reward),
                web.post(f"/models/{_ANY_SELECTOR}/get_reward", self._get_reward),
                web.post("/classify", self._classify),
                web.post(f"/models/{_ANY_SELECTOR}/classify", self._classify),
            ]
        )
        return app

    # --- probes and metrics ---

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        is_ready = self._readiness.is_ready
        body = {
            "ready": is_ready,
            "draining": self._calls.is_draining,
            "missing": [self._described(part, request) for part in self._readiness.missing()],
            # The text of the error stays in the log: it may name hosts.
            "catalog_reachable": self._readiness.is_catalog_reachable,
        }
        return web.json_response(body, status=200 if is_ready else 503)

    def _described(self, missing: Missing, request: web.Request) -> dict[str, Any]:
        """Its name, and the error's text, which has paths, are only for callers who may read of the model."""
        (model, version), error = missing.key, missing.error
        what = {"state": missing.state, "reason": error.reason if error is not None else ""}
        if not self._access.can_see(model, *_shown(request)):
            return what
        return {"model": model, "version": version, **what, "message": error.message if error is not None else ""}

    async def _scrape(self, request: web.Request) -> web.Response:
        rule = METRICS_WITH_TOKEN if self._metrics_need_token else _rule(request)
        with self._permit(request, rule).admit(None):
            self._metrics.ready(self._readiness.is_ready)
            self._metrics.versions_missing(Counter(part.state for part in self._readiness.missing()))
            self._metrics.forget_long_unloaded()
            text, content_type = await asyncio.get_running_loop().run_in_executor(
                self._scrapes, self._metrics.exposition, request.headers.get("accept", "")
            )
        return web.Response(body=text, headers={"content-type": content_type})

    # --- scoring ---

    async def _get_reward(self, request: web.Request) -> web.Response:
        return await self._score(
            "get_reward",
            request,
            http_shapes.openrlhf_groups,
            lambda answer, call: http_shapes.openrlhf_response(answer),
        )

    async def _classify(self, request: web.Request) -> web.Response:
        return await self._score(
            "classify",
            request,
            http_shapes.vllm_groups,
            lambda answer, call: http_shapes.vllm_response(answer, call.request_id),
        )

    async def _score(
        self,
        method: str,
        request: web.Request,
        groups_of: Callable[[dict[str, Any], http_shapes.CheckSize], list[http_shapes.Group]],
        response_of: Callable[[ScoreAnswer, Call], dict[str, Any]],
    ) -> web.Response:
        call = Call(method, actor="", run=request.query.get("run", ""), trace_context=trace_context(request.headers))
        if request_id := request.headers.get("x-request-id"):
            # Of bytes that are no UTF-8, aiohttp makes surrogates, which neither the score log nor a shadow can take.
            call.request_id = request_id.encode("utf-8", "replace").decode()
        with self._calls.under_way(call):
            permit = self._permit(request, _rule(request))
            call.actor = permit.actor
            body = http_shapes.parse_json(await self._read(request))
            selector = self._selector(request, body)
            calibrated = http_shapes.wants_calibrated(request.query)
            groups = tuple(groups_of(body, self._scorer.check_size))
            with permit.admit(HttpScoring(selector, sum(len(completions) for _, completions in groups))):
                asked = ScoreCall(selector, groups, call.run, call.request_id, calibrated=calibrated)
                answer = await self._scorer.score(asked, call.deadline, call.routed)
            call.scored(answer)
            return web.json_response(response_of(answer, call), headers={"x-request-id": call.request_id})

    def _permit(self, request: web.Request, rule: Rule) -> Permit:
        return self._access.permit(rule, *_shown(request))

    def _selector(self, request: web.Request, body: dict[str, Any]) -> str:
        """The path's, else the default, else the body's ``model``: verl has its own model's path in there."""
        selector = request.match_info.get("selector") or self._default_model or body.get("model")
        if not isinstance(selector, str) or not selector:
            raise InvalidRequest(
                f"No model is named: POST /models/NAME@LABEL{request.path}, send `model`, or start the server with "
                "--default-model."
            )
        return selector

    async def _read(self, request: web.Request) -> bytes:
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise RequestTooLarge(
                f"The body has more than {self._max_body_bytes} bytes (transport.max_message_mb). Send it in parts."
            ) from None
        except web.RequestPayloadError:
            encoding = request.headers.get("content-encoding", "none")
            raise MalformedRequest(f"The body cannot be decoded; its Content-Encoding is {encoding}.") from None


def _shown(request: web.Request) -> tuple[str | None, Identities]:
    """What tells who calls: a token, a certificate."""
    return request.headers.get("authorization"), lambda: http_identities(request.get_extra_info("peercert"))


def _rule(request: web.Request) -> Rule:
    resource = request.match_info.route.resource
    method = "GET" if request.method == "HEAD" else request.method
    return rule_of(f"{method} {resource.canonical if resource is not None else request.path}")


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RmError as error:
        outcome = outcome_of(error)
        content: dict[str, object] = {"reason": outcome.reason.removeprefix("ERROR_REASON_"), "message": error.message}
        headers = {}
        if error.retry_after_s is not None:
            content["retry_after_seconds"] = error.retry_after_s
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        return web.json_response({"error": content}, status=outcome.http_status, headers=headers)
    except web.HTTPException as error:
        message = f"{error.reason}: {request.method} {request.path}."
        return web.json_response({"error": {"reason": "INVALID_ARGUMENT", "message": message}}, status=error.status)
