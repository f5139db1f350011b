"""TLS, client certificates and the token, on gRPC and HTTP alike; the probes stay open."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rm_api.v1 import errors_pb2, models_pb2, models_pb2_grpc
from running_server import LOCAL_ONLY, RunningServer, error_of, running

from rm_server import cli
from rm_server.config import AuthSettings, ConfigError, TlsSettings

TOKEN = "s3cret-token"
STATUS = models_pb2.GetServerStatusRequest()


@dataclass(frozen=True)
class Keys:
    """PEM files: an authority, the server's certificate and a client's, both signed by it."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test's certificates, is not installed")
    folder = tmp_path_factory.mktemp("keys")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test authority"
    )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return Keys(*(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[RunningServer]:
    tls = TlsSettings(cert=keys.server, key=keys.server_key)
    with running(tmp_path_factory.mktemp("home"), tls=tls, token=TOKEN) as server:
        yield server


def channel(server: RunningServer, keys: Keys, *, with_certificate: bool = False) -> grpc.Channel:
    pair = (keys.client_key.read_bytes(), keys.client.read_bytes()) if with_certificate else (None, None)
    credentials = grpc.ssl_channel_credentials(keys.ca.read_bytes(), *pair)
    return grpc.secure_channel(server.app.grpc_address, credentials, LOCAL_ONLY)


def get(
    server: RunningServer,
    keys: Keys,
    path: str,
    token: str = "",
    *,
    with_certificate: bool = False,
    method: str = "GET",
) -> int:
    context = ssl.create_default_context(cafile=keys.ca)
    if with_certificate:
        context.load_cert_chain(keys.client, keys.client_key)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"https://{server.app.http_address}{path}", headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_token_opens_grpc(server: RunningServer, keys: Keys) -> None:
    with channel(server, keys) as secure:
        status = models_pb2_grpc.ModelServiceStub(secure).GetServerStatus
        assert status(STATUS, metadata=(("authorization", f"Bearer {TOKEN}"),)).device == "cpu"
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", TOKEN),)):
            code, error = error_of(lambda metadata=metadata: status(STATUS, metadata=metadata))
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert error.reason == errors_pb2.ERROR_REASON_UNAUTHENTICATED
            assert TOKEN not in error.message


def test_the_token_opens_http_and_the_probes_need_none(server: RunningServer, keys: Keys) -> None:
    assert get(server, keys, "/healthz") == 200
    assert get(server, keys, "/readyz") == 200
    assert get(server, keys, "/metrics") == 200
    assert get(server, keys, "/get_reward", method="POST") == 401
    assert get(server, keys, "/get_reward", "wrong", method="POST") == 401
    assert get(server, keys, "/get_reward", TOKEN, method="POST") == 400


def test_metrics_want_a_token_where_the_settings_say_so(tmp_path: Path, keys: Keys) -> None:
    tls = TlsSettings(cert=keys.server, key=keys.server_key)
    with running(tmp_path, tls=tls, token=TOKEN, auth=AuthSettings(metrics_need_token=True)) as server:
        assert get(server, keys, "/metrics") == 401
        assert get(server, keys, "/metrics", "wrong") == 401
        assert get(server, keys, "/metrics", TOKEN) == 200


def test_health_needs_no_token(server: RunningServer, keys: Keys) -> None:
    with channel(server, keys) as secure:
        answer = health_pb2_grpc.HealthStub(secure).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_plain_text_on_a_tls_port_is_refused(server: RunningServer) -> None:
    with grpc.insecure_channel(server.app.grpc_address, LOCAL_ONLY) as plain:
        with pytest.raises(grpc.RpcError) as caught:
            models_pb2_grpc.ModelServiceStub(plain).GetServerStatus(STATUS, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://{server.app.http_address}/healthz", timeout=30)


def test_commands_show_the_token_and_check_the_certificate(
    server: RunningServer,
    keys: Keys,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["status", "--server", server.app.grpc_address, "--ca", str(keys.ca)]
    assert cli.main(command) == 1
    assert "wants a token" in capsys.readouterr().err
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert cli.main([*command, "--token-file", str(tmp_path / "token")]) == 0
    monkeypatch.setenv("RM_TOKEN", TOKEN)
    assert cli.main(command) == 0
    assert cli.main([*command[:3], "--ca", str(keys.client)]) == 1
    assert "No server answers" in capsys.readouterr().err


def test_client_certificates_are_asked_for(tmp_path: Path, keys: Keys) -> None:
    tls = TlsSettings(cert=keys.server, key=keys.server_key, client_ca=keys.ca)
    with running(tmp_path, tls=tls) as server:
        with channel(server, keys, with_certificate=True) as known:
            assert models_pb2_grpc.ModelServiceStub(known).GetServerStatus(STATUS).device == "cpu"
        with channel(server, keys) as unknown:
            with pytest.raises(grpc.RpcError) as caught:
                models_pb2_grpc.ModelServiceStub(unknown).GetServerStatus(STATUS, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert get(server, keys, "/healthz", with_certificate=True) == 200
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            get(server, keys, "/healthz")


def test_a_token_file_is_read_and_an_empty_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match="cannot be read"):
        RunningServer(tmp_path / "home", token_file=file).start()
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        RunningServer(tmp_path / "home", token_file=file).start()
    file.write_text(f"{TOKEN}\n")
    with running(tmp_path / "home", token_file=file) as server:
        code, _ = error_of(lambda: server.models.GetServerStatus(STATUS))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        server.models.GetServerStatus(STATUS, metadata=(("authorization", f"bearer {TOKEN}"),))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_used_are_named(tmp_path: Path, keys: Keys, content: str | None) -> None:
    cert = tmp_path / "cert.pem"
    if content is not None:
        cert.write_text(content)
    with pytest.raises(ConfigError, match="cert"):
        RunningServer(tmp_path / "home", tls=TlsSettings(cert=cert, key=keys.server_key)).start()
