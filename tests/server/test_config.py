"""Settings that contradict each other, and addresses that would open the server to others."""

from __future__ import annotations

from pathlib import Path

import pytest

from rm_server.config import (
    AuthSettings,
    ConfigError,
    EngineSettings,
    LimitSettings,
    LogSettings,
    RunSettings,
    ServeSettings,
    TlsSettings,
    TransportSettings,
    parse_address,
)

HOME = Path("home")
TLS = TlsSettings(cert=Path("cert.pem"), key=Path("key.pem"))
MTLS = TlsSettings(cert=Path("cert.pem"), key=Path("key.pem"), client_ca=Path("ca.pem"))
TOKENS = AuthSettings(tokens=Path("tokens.toml"))


def test_listens_on_loopback_unless_told_otherwise() -> None:
    settings = ServeSettings(HOME)
    assert (settings.listen, settings.http) == ("127.0.0.1:50051", "127.0.0.1:8080")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.9.10:1", "[::1]:50051", "localhost:50051"])
def test_loopback_needs_nothing(address: str) -> None:
    ServeSettings(HOME, listen=address, http=address)


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.0.0.7:50051", "gpu-7.example.org:50051"])
@pytest.mark.parametrize("name", ["listen", "http"])
def test_wider_needs_tls_and_a_token_or_client_certificates(name: str, address: str) -> None:
    def settings(**others: object) -> ServeSettings:
        return ServeSettings(HOME, **{name: address}, **others)  # type: ignore[arg-type]

    for missing in ({}, {"tls": TLS}, {"token": "secret"}, {"token_file": Path("token")}, {"auth": TOKENS}):
        with pytest.raises(ConfigError, match=f"{name} is .*beyond this machine"):
            settings(**missing)
    settings(tls=TLS, token="secret")
    settings(tls=TLS, token_file=Path("token"))
    settings(tls=TLS, auth=TOKENS)
    settings(tls=MTLS)
    settings(allow_insecure=True)


def test_metrics_cannot_want_a_token_where_there_are_none() -> None:
    with pytest.raises(ConfigError, match="there are no tokens"):
        ServeSettings(HOME, auth=AuthSettings(metrics_need_token=True))
    ServeSettings(HOME, token="a", auth=AuthSettings(metrics_need_token=True))


def test_http_can_be_left_out_and_grpc_cannot() -> None:
    ServeSettings(HOME, http="")
    with pytest.raises(ConfigError, match="HOST:PORT was expected"):
        ServeSettings(HOME, listen="")


@pytest.mark.parametrize("address", ["50051", "127.0.0.1", ":50051", "127.0.0.1:x", "127.0.0.1:70000"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="listen is"):
        parse_address("listen", address)


def test_half_a_key_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match="belong together"):
        TlsSettings(cert=Path("cert.pem"))
    with pytest.raises(ConfigError, match="client_ca needs"):
        TlsSettings(client_ca=Path("ca.pem"))


def test_two_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="both set"):
        ServeSettings(HOME, token="a", token_file=Path("b"))


def test_a_share_is_a_share() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        LogSettings(access_share=1.5)


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(ServeSettings(HOME, token="secret"))


def test_megabytes_are_binary() -> None:
    assert TransportSettings(max_message_mb=0.5).max_message_bytes == 512 * 1024


def test_a_message_that_grpc_cannot_hold_is_refused() -> None:
    assert TransportSettings(max_message_mb=2047).max_message_bytes < 2**31
    with pytest.raises(ConfigError, match=r"transport\.max_message_mb is 2048; it must be below 2048"):
        TransportSettings(max_message_mb=2048)


@pytest.mark.parametrize(
    "name", ["max_batch_tokens", "max_batch_items", "batches_in_flight", "encode_threads", "max_queued_items"]
)
def test_an_engine_that_could_never_compute_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.{name} is 0"):
        EngineSettings(**{name: 0})


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (LimitSettings, "max_items_per_request"),
        (RunSettings, "lease_s"),
        (RunSettings, "max_known_runs"),
        (TransportSettings, "max_message_mb"),
        (TransportSettings, "max_concurrent_streams"),
        (TransportSettings, "max_stream_requests"),
    ],
)
def test_limits_that_would_let_nothing_through_are_refused(settings: type, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\.{name} is 0; it must be"):
        settings(**{name: 0})


def test_a_lease_that_no_run_may_ask_for_is_no_default() -> None:
    assert RunSettings(lease_s=604_800).lease_s == 604_800
    with pytest.raises(ConfigError, match=r"runs\.lease_s is 1e\+15; it must be at most 604800"):
        RunSettings(lease_s=1e15)


def test_a_run_without_weight_would_never_have_its_turn() -> None:
    with pytest.raises(ConfigError, match="weight of 'a'"):
        EngineSettings(run_weights={"a": 0.0})
