"""Connections: a gRPC channel for each server, made when it is first asked, and single calls over it.

The channels are gRPC's synchronous ones, whose calls end in a callback, and not `grpc.aio`'s: with calls under way,
processes that are forked beside an aio channel (a DataLoader's workers) were seen to die with SIGSEGV, about one in
twelve, although they never touched it; beside these none did. An aio channel is also tied to one event loop. The price
is about 0.05 ms a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from rm_api.v1 import experiments_pb2_grpc, models_pb2_grpc, scoring_pb2_grpc

from ppo_client.client.error_map import from_status
from ppo_client.client.errors import InvalidSettings, RewardClientError
from ppo_client.client.settings import ClientSettings, Tls, is_loopback

_FOR_EVER_MS = 2**31 - 1
"""gRPC's largest number."""

_LONGEST_TIMEOUT_S = 365 * 24 * 3600.0
"""A deadline more than some 250 years away has passed already, as gRPC counts."""


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services of one server."""

    scoring: scoring_pb2_grpc.ScoringServiceStub
    models: models_pb2_grpc.ModelServiceStub
    experiments: experiments_pb2_grpc.ExperimentServiceStub


class Channels:
    """One channel for each of the settings' targets."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._open: dict[int, tuple[grpc.Channel, Stubs]] = {}
        self.metadata = (("authorization", f"Bearer {settings.token}"),) if settings.token else ()

    def stubs(self, index: int) -> Stubs:
        """The services of the server of that index."""
        if index not in self._open:
            channel = open_channel(self._settings, self._settings.targets[index])
            self._open[index] = (
                channel,
                Stubs(
                    scoring_pb2_grpc.ScoringServiceStub(channel),
                    models_pb2_grpc.ModelServiceStub(channel),
                    experiments_pb2_grpc.ExperimentServiceStub(channel),
                ),
            )
        return self._open[index][1]

    def close(self) -> None:
        """Closes them all."""
        for channel, _ in self._open.values():
            channel.close()
        self._open.clear()


def open_channel(settings: ClientSettings, target: str) -> grpc.Channel:
    """A channel to one target; a name with several addresses is balanced over all of them."""
    options = channel_options(settings, target)
    if settings.tls is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, _credentials(settings.tls), options)


def channel_options(settings: ClientSettings, target: str) -> list[tuple[str, int | str]]:
    """gRPC's names for our settings."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", int(settings.max_message_mb * 1024 * 1024)),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", min(int(settings.keepalive_s * 1000), _FOR_EVER_MS)),
        ("grpc.keepalive_timeout_ms", 20_000),
        # gRPC's own default grows to two minutes: a server that is back would stay unasked for that long.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 3_000),
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.primary_user_agent", f"ppo-client/{importlib.metadata.version('rm-service')}"),
    ]
    if is_loopback(target):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    def read(path: Path | str | None) -> bytes | None:
        try:
            return None if path is None else Path(path).read_bytes()
        except OSError as error:
            raise InvalidSettings(f"tls: {path} cannot be read: {error.strerror}") from None

    credentials = grpc.ssl_channel_credentials(
        root_certificates=read(tls.ca), private_key=read(tls.key), certificate_chain=read(tls.cert)
    )
    _check_usable(tls)
    return credentials


def _check_usable(tls: Tls) -> None:
    """gRPC would only find no connection, and the server would seem to be down. Raises InvalidSettings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None:
        try:
            context.load_verify_locations(tls.ca)
        except ssl.SSLError as error:
            raise InvalidSettings(f"tls: {tls.ca} holds no authority's certificates in PEM: {error}") from None
    if tls.cert is not None:
        try:
            context.load_cert_chain(tls.cert, tls.key, password=lambda: _no_passphrase(tls))
        except ssl.SSLError as error:
            raise InvalidSettings(f"tls: {tls.cert} and {tls.key} are no certificate and its key: {error}") from None


def _no_passphrase(tls: Tls) -> str:
    """OpenSSL would ask for it at the terminal."""
    raise InvalidSettings(f"tls: {tls.key} is encrypted; decrypt it: openssl pkey -in {tls.key}")


async def send(
    method: grpc.UnaryUnaryMultiCallable, request: Message, *, timeout_s: float, metadata: tuple[tuple[str, str], ...]
) -> Any:
    """One attempt at a unary call. Raises the error that stands for its failure; cancelling it cancels the call."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ended.done():
            ended.set_result(None)

    def on_end(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed in the meantime: nobody waits
            loop.call_soon_threadsafe(wake)

    call = method.future(request, timeout=min(timeout_s, _LONGEST_TIMEOUT_S), metadata=metadata)
    call.add_done_callback(on_end)
    try:
        await ended
    except asyncio.CancelledError:
        call.cancel()
        raise
    if call.code() is grpc.StatusCode.OK:
        return call.result()
    raise error_of(call)


def error_of(call: Any) -> RewardClientError:
    """What stands for the failure of an ended call."""
    return from_status(call.code(), call.details() or "", call.trailing_metadata() or ())
