"""The gRPC server: its services, addresses, credentials and limits; the listener for HTTP beside it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import grpc
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from grpc_health.v1 import health_pb2
from rm_api.oip import inference_pb2
from rm_api.v1 import experiments_pb2, models_pb2, scoring_pb2

from rm_server.api.certificates import Certificates
from rm_server.api.experiment_service import ExperimentService
from rm_server.api.explain_service import ExplainService
from rm_server.api.health import HealthService
from rm_server.api.model_service import ModelService
from rm_server.api.oip_service import OipService
from rm_server.api.outcome_service import OutcomeService
from rm_server.api.promotion_service import PromotionService
from rm_server.api.reflection import REFLECTION, ReflectionService
from rm_server.api.rpc import Edge
from rm_server.api.scoring_service import ScoringService
from rm_server.api.shadow_service import ShadowService
from rm_server.config import ConfigError, TransportSettings, parse_address

SCORING = scoring_pb2.DESCRIPTOR.services_by_name["ScoringService"]
MODELS = models_pb2.DESCRIPTOR.services_by_name["ModelService"]
EXPERIMENTS = experiments_pb2.DESCRIPTOR.services_by_name["ExperimentService"]
OIP = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

SERVICE_NAMES = tuple(service.full_name for service in (SCORING, MODELS, EXPERIMENTS, OIP))
REFLECTED_NAMES = (*SERVICE_NAMES, HEALTH.full_name, REFLECTION.full_name)

MODEL_READS = ("ListModels", "GetVersion", "WatchModels", "ListHistory", "GetServerStatus")
EXPERIMENT_READS = ("ListRuns", "ListSplits")
SHADOW_READS = ("ListShadows", "GetShadowReport")
OUTCOME_READS = ("GetExperimentReport",)
OIP_READS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata")
HEALTH_READS = ("Check", "List", "Watch")


class GrpcServer:
    """Binds its address at once, so that a port that is taken is found before anything is loaded."""

    def __init__(
        self,
        edge: Edge,
        *,
        scoring: ScoringService,
        explaining: ExplainService,
        models: ModelService,
        experiments: ExperimentService,
        shadows: ShadowService,
        outcomes: OutcomeService,
        promotions: PromotionService,
        oip: OipService,
        health: HealthService,
        address: str,
        transport: TransportSettings,
        certificates: Certificates,
    ) -> None:
        self._server = grpc.aio.server(options=server_options(transport))
        self._server.add_generic_rpc_handlers(
            (
                edge.handler(SCORING, scoring),
                edge.handler(SCORING, explaining),
                edge.handler(MODELS, models, reads=MODEL_READS),
                edge.handler(MODELS, promotions),
                edge.handler(EXPERIMENTS, experiments, reads=EXPERIMENT_READS),
                edge.handler(EXPERIMENTS, shadows, reads=SHADOW_READS),
                edge.handler(EXPERIMENTS, outcomes, reads=OUTCOME_READS),
                edge.handler(OIP, oip, reads=OIP_READS),
                edge.handler(HEALTH, health, reads=HEALTH_READS),
                edge.handler(REFLECTION, ReflectionService(REFLECTED_NAMES)),
            )
        )
        self.port = self._bind(address, certificates.grpc_credentials())
        self._is_stopped = False

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is not None:
                return int(self._server.add_secure_port(address, credentials))
            return int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            raise ConfigError(f"Cannot listen on {address}: {str(error).rstrip('.')}. Is the port taken?") from error

    async def start(self) -> None:
        """Accepts calls from now on."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Accepts no more; what still runs after ``grace_s`` is cancelled. A second call does nothing."""
        if not self._is_stopped:
            self._is_stopped = True
            await self._server.stop(grace_s)


class HttpServer:
    """aiohttp's listener for one application."""

    def __init__(self, application: web.Application, address: str, certificates: Certificates) -> None:
        logger = logging.getLogger(__name__)
        logger.addFilter(_without_trace_of_strangers)
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, logger=logger, shutdown_timeout=1.0
        )
        self._address = address
        self._certificates = certificates
        self.port = 0

    async def start(self) -> None:
        """Binds and accepts."""
        host, port = parse_address("http", self._address)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=self._certificates.http_context()).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(f"Cannot listen on {self._address}: {error}.") from error
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Closes."""
        await self._runner.cleanup()


def _without_trace_of_strangers(record: logging.LogRecord) -> bool:
    """Makes one line of what aiohttp says of bytes that are not HTTP/1.1, or no body: the mistake is the sender's."""
    failure = record.exc_info[1] if record.exc_info else None
    if isinstance(failure, BadHttpMessage | web.RequestPayloadError):
        is_body = isinstance(failure, web.RequestPayloadError)
        what = "a body cannot be decoded" if is_body else "not HTTP/1.1; gRPC's clients want the address of --listen"
        record.msg = f"{record.msg}: {what}"
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
    return True


def server_options(transport: TransportSettings) -> Sequence[tuple[str, Any]]:
    """gRPC's channel arguments. To messages beyond ``max_message_mb`` gRPC itself answers RESOURCE_EXHAUSTED."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", transport.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", transport.max_concurrent_streams),
        ("grpc.keepalive_time_ms", _ms(transport.keepalive_time_s)),
        ("grpc.keepalive_timeout_ms", _ms(transport.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(transport.min_ping_interval_s)),
        ("grpc.so_reuseport", 0),  # a second server on the same port shall fail, not share the calls
    ]
    if transport.max_connection_age_s:
        options += [
            ("grpc.max_connection_age_ms", _ms(transport.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", _ms(transport.max_connection_age_grace_s)),
        ]
    return options


def _ms(seconds: float) -> int:
    return min(int(seconds * 1000), 2**31 - 1)  # gRPC's largest number; to it, that is for ever
