"""gRPC's own settings, as the transport settings give them."""

from __future__ import annotations

from rm_server.api.server import server_options
from rm_server.config import TransportSettings


def test_connections_age_so_that_clients_spread_over_new_servers() -> None:
    options = dict(server_options(TransportSettings(max_connection_age_s=60, max_connection_age_grace_s=5)))
    assert options["grpc.max_connection_age_ms"] == 60_000
    assert options["grpc.max_connection_age_grace_ms"] == 5_000
    assert "grpc.max_connection_age_ms" not in dict(server_options(TransportSettings(max_connection_age_s=0)))


def test_clients_may_ask_often_whether_the_server_lives() -> None:
    options = dict(server_options(TransportSettings(min_ping_interval_s=10, keepalive_time_s=60)))
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == 10_000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.keepalive_time_ms"] == 60_000


def test_the_size_of_a_message_is_a_setting_and_the_port_is_not_shared() -> None:
    options = dict(server_options(TransportSettings(max_message_mb=2)))
    assert options["grpc.max_receive_message_length"] == 2 * 1024 * 1024
    assert options["grpc.so_reuseport"] == 0


def test_more_milliseconds_than_grpc_can_hold_are_for_ever() -> None:
    month_s = 30 * 24 * 3600
    options = dict(server_options(TransportSettings(max_connection_age_s=month_s)))
    assert options["grpc.max_connection_age_ms"] == 2**31 - 1
