from __future__ import annotations

import json

from ppo_client.client.channels import channel_options
from ppo_client.client.settings import ClientSettings


def options(target: str = "localhost:1", **settings: float) -> dict[str, int | str]:
    return dict(channel_options(ClientSettings((target,), **settings), target))


def test_names_with_several_addresses_are_balanced() -> None:
    assert json.loads(str(options()["grpc.service_config"])) == {"loadBalancingConfig": [{"round_robin": {}}]}


def test_a_server_that_is_back_is_noticed_within_seconds() -> None:
    assert options()["grpc.max_reconnect_backoff_ms"] == 3000


def test_large_replies_are_taken_and_large_requests_left_to_the_server_to_refuse() -> None:
    assert options()["grpc.max_receive_message_length"] == 64 * 1024 * 1024
    assert options()["grpc.max_send_message_length"] == -1


def test_keepalive_is_polite() -> None:
    # More often than every 10 s, our servers take it for an attack; without calls under way nothing is sent.
    assert options()["grpc.keepalive_time_ms"] == 30_000
    assert options(keepalive_s=300)["grpc.keepalive_time_ms"] == 300_000
    assert "grpc.keepalive_permit_without_calls" not in options()


def test_more_milliseconds_than_grpc_can_hold_are_for_ever() -> None:
    month_s = 30 * 24 * 3600
    assert options(keepalive_s=month_s)["grpc.keepalive_time_ms"] == 2**31 - 1


def test_the_http_proxy_is_not_asked_for_this_machine() -> None:
    assert options("127.0.0.1:1")["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in options("rewards:1")
