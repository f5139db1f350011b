"""TLS, client certificates and the token, on gRPC and HTTP alike; the probes stay open."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rm_api.v1 import errors_pb2, models_pb2, models_pb2_grpc
from running_server import LOCAL_ONLY, RunningServer, error_of, running
from waiting import wait_until

from ppo_client import RewardClient, Tls
from ppo_client.errors import InvalidSettings, ModelNotFound, ServerUnreachable
from rm_server import cli
from rm_server.api.roles import Role
from rm_server.api.tokens import TokenEntry, hash_of
from rm_server.api.tokens_file import add_token, revoke_token
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
    renewed: Path
    renewed_key: Path
    other_ca: Path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test's certificates, is not installed")
    folder = tmp_path_factory.mktemp("keys")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for ca in ("ca", "other_ca"):
        authority = ("-days", "2", "-subj", f"/CN=test authority {ca}")
        openssl("req", "-x509", *new_key, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", *authority)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client", "renewed"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    names = ("ca.pem", *(f"{name}.{part}" for name in ("server", "client", "renewed") for part in ("pem", "key")))
    return Keys(*(folder / name for name in (*names, "other_ca.pem")))


def encrypt(key: Path, encrypted: Path) -> None:
    command = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:word", "-out", encrypted]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[RunningServer]:
    tls = TlsSettings(cert=keys.server, key=keys.server_key)
    with running(tmp_path_factory.mktemp("home"), tls=tls, token=TOKEN) as server:
        yield server


def trusting(keys: Keys) -> ssl.SSLContext:
    """The test's authority says no more of itself than openssl makes it say, which is too little for Python 3.13."""
    context = ssl.create_default_context(cafile=keys.ca)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


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
    context = trusting(keys)
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
    monkeypatch.setenv("RM_TOKEN", f"{TOKEN}\n")  # as a secret's file has it
    assert cli.main(command) == 0
    for without_trust in (command[:3], [*command[:3], "--ca", str(keys.client)]):
        assert cli.main(without_trust) == 1
        said = capsys.readouterr().err
        assert "No server answers" in said
        assert "does that one speak TLS (--ca)" in said
        assert "certificate of its callers (--cert, --key)?" in said
    monkeypatch.setenv("RM_TLS_CA", str(keys.ca))
    assert cli.main(command[:3]) == 0


@pytest.mark.parametrize("form", [str, Path])
def test_a_client_names_its_authority_by_text_or_path(
    server: RunningServer, keys: Keys, form: Callable[[Path], str | Path]
) -> None:
    def ask(ca: Path) -> None:
        with RewardClient(server.app.grpc_address, token=TOKEN, tls=Tls(ca=form(ca))) as client:
            client.score("nothing@1", prompts=[], completions=[])

    with pytest.raises(ModelNotFound):  # so the server was trusted, and it answered
        ask(keys.ca)
    with pytest.raises(InvalidSettings, match=r"nowhere\.pem cannot be read"):
        ask(Path("nowhere.pem"))


def test_a_client_s_files_that_cannot_be_used_are_named_before_any_server_is_asked(keys: Keys, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.key"
    encrypt(keys.client_key, encrypted)
    for tls, said in (
        (Tls(ca=keys.server_key), r"server\.key holds no authority's certificates"),
        (Tls(keys.ca, keys.client, keys.server_key), r"client\.pem and .*server\.key are no certificate and its key"),
        (Tls(keys.ca, keys.client, encrypted), r"encrypted\.key is encrypted"),
    ):
        with RewardClient("localhost:1", tls=tls) as client, pytest.raises(InvalidSettings, match=said):
            client.list_models()


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


def test_a_client_shows_the_certificate_that_its_environment_names(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = TlsSettings(cert=keys.server, key=keys.server_key, client_ca=keys.ca)
    tokens = tmp_path / "tokens.toml"
    add_token(tokens, TokenEntry("trainer", Role.SCORE, certificate="client"))
    with running(tmp_path / "home", tls=tls, auth=AuthSettings(tokens=tokens)) as server:
        monkeypatch.setenv("RM_TARGET", server.app.grpc_address)
        monkeypatch.setenv("RM_TLS_CA", str(keys.ca))
        with RewardClient(timeout_s=2) as client, pytest.raises(ServerUnreachable, match="RM_TLS_CERT"):
            client.list_models()
        monkeypatch.setenv("RM_TLS_CERT", str(keys.client))
        monkeypatch.setenv("RM_TLS_KEY", str(keys.client_key))
        with RewardClient() as client:
            assert client.list_models() == []


def test_a_token_file_is_read_and_an_empty_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match="cannot be read"):
        RunningServer(tmp_path / "home", token_file=file).start()
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        RunningServer(tmp_path / "home", token_file=file).start()
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is no text"):
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


# --- while the server serves ---


def test_a_missing_certificate_is_named(tmp_path: Path, keys: Keys) -> None:
    tls = TlsSettings(cert=tmp_path / "gone.pem", key=keys.server_key)
    with pytest.raises(ConfigError, match=r"tls.cert: .*gone.pem cannot be read"), running(tmp_path / "home", tls=tls):
        pass


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_passphrase(tmp_path: Path, keys: Keys) -> None:
    encrypted = tmp_path / "encrypted.key"
    encrypt(keys.server_key, encrypted)
    tls = TlsSettings(cert=keys.server, key=encrypted)
    with (
        pytest.raises(ConfigError, match=r"tls.key: .*encrypted.key is encrypted"),
        running(tmp_path / "home", tls=tls),
    ):
        pass


def answer(
    server: RunningServer, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[bytes, ssl.SSLSession | None]:
    """What HTTP answers to a connection that goes on with the session, and the session to come back with.

    Nothing where it is refused: in TLS 1.3 a client learns of that after its own handshake.
    """
    host, _, port = server.app.http_address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=30)
    try:
        with context.wrap_socket(plain, server_hostname=host, session=session) as secure:
            secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            received = b"".join(iter(lambda: secure.recv(4096), b""))
            return received.partition(b"\r\n")[0], secure.session
    except (ssl.SSLError, ConnectionError):
        return b"", None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_does_not_outlive_its_authority(tmp_path: Path, keys: Keys, version: ssl.TLSVersion) -> None:
    trusted = tmp_path / "ca.pem"
    shutil.copy(keys.ca, trusted)
    tls = TlsSettings(cert=keys.server, key=keys.server_key, client_ca=trusted)
    context = trusting(keys)
    context.load_cert_chain(keys.client, keys.client_key)
    context.maximum_version = version
    with running(tmp_path / "home", tls=tls) as server:
        before, session = answer(server, context)
        assert before == (b"HTTP/1.1 200 OK" if version is ssl.TLSVersion.TLSv1_3 else b"")
        shutil.copy(keys.other_ca, trusted)
        reload(server)
        assert answer(server, context, session)[0] == b""


def greeted_with(address: str, keys: Keys, *, alpn: str) -> str:
    """The common name in the certificate that the server shows to a new connection of a client with ours."""
    context = trusting(keys)
    context.load_cert_chain(keys.client, keys.client_key)
    context.set_alpn_protocols([alpn])
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=30)
    with context.wrap_socket(plain, server_hostname=host) as secure:
        certificate = secure.getpeercert()
    assert certificate is not None
    return str(dict(part[0] for part in certificate["subject"])["commonName"])  # type: ignore[index,misc]


def reload(server: RunningServer) -> None:
    """As SIGHUP does; whether it is done is seen by what comes after it on the server's loop."""
    done = threading.Event()
    server.loop.call_soon_threadsafe(lambda: (server.app.reload(), done.set()))
    assert done.wait(30)


def authorization(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def test_tokens_come_and_go_while_the_server_serves(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    add_token(file, TokenEntry("first", Role.SCORE, sha256=hash_of("first")))
    with running(tmp_path / "home", auth=AuthSettings(tokens=file)) as server:

        def code(token: str) -> grpc.StatusCode:
            try:
                server.models.GetServerStatus(STATUS, metadata=authorization(token), timeout=30)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        assert (code("first"), code("second")) == (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)
        add_token(file, TokenEntry("second", Role.SCORE, sha256=hash_of("second")))
        wait_until(lambda: code("second") is grpc.StatusCode.OK)  # nobody told the server
        assert code("first") is grpc.StatusCode.OK
        revoke_token(file, "first")
        wait_until(lambda: code("first") is grpc.StatusCode.UNAUTHENTICATED)
        assert code("second") is grpc.StatusCode.OK

        file.write_text("[[token]]\nname = 'third'")
        reload(server)
        assert code("second") is grpc.StatusCode.OK
        assert server.metric("rm_files_refused", files="tokens") == 1
        assert server.metric("rm_reloads_total", files="tokens", reason="refused") >= 1
        file.unlink()
        reload(server)
        assert code("second") is grpc.StatusCode.OK


def test_the_one_token_s_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file, tokens = tmp_path / "token", tmp_path / "tokens.toml"
    file.write_text("old\n")
    add_token(tokens, TokenEntry("other", Role.SCORE, sha256=hash_of("other")))
    with running(tmp_path / "home", token_file=file, auth=AuthSettings(tokens=tokens)) as server:

        def is_known(token: str) -> bool:
            try:
                server.models.GetServerStatus(STATUS, metadata=authorization(token), timeout=30)
            except grpc.RpcError:
                return False
            return True

        def known() -> list[str]:
            return [token for token in ("old", "new", "other") if is_known(token)]

        assert known() == ["old", "other"]
        file.write_text("new\n")
        wait_until(lambda: known() == ["new", "other"])
        for refused in ("", "other"):  # an entry has that one
            file.write_text(refused)
            reload(server)
            assert server.metric("rm_files_refused", files="token") == 1
            assert known() == ["new", "other"]


def test_a_server_does_not_start_with_a_broken_tokens_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    with pytest.raises(ConfigError, match="cannot be read"):
        RunningServer(tmp_path / "home", auth=AuthSettings(tokens=file)).start()
    file.write_text("[[token]]")
    with pytest.raises(ConfigError, match="token 1: name is None"):
        RunningServer(tmp_path / "home", auth=AuthSettings(tokens=file)).start()
    add_token(tmp_path / "other.toml", TokenEntry("ops", Role.ADMIN, certificate="client"))
    with pytest.raises(ConfigError, match=r"only with tls\.client_ca"):
        RunningServer(tmp_path / "home", auth=AuthSettings(tokens=tmp_path / "other.toml")).start()


def test_certificates_are_renewed_while_the_server_serves(tmp_path: Path, keys: Keys) -> None:
    files = TlsSettings(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem", client_ca=tmp_path / "ca.pem")
    assert files.cert is not None
    assert files.key is not None
    assert files.client_ca is not None
    for source, target in ((keys.server, files.cert), (keys.server_key, files.key), (keys.ca, files.client_ca)):
        shutil.copy(source, target)
    with running(tmp_path / "home", tls=files) as server, channel(server, keys, with_certificate=True) as open_before:

        def greetings() -> set[str]:
            return {
                greeted_with(server.app.grpc_address, keys, alpn="h2"),
                greeted_with(server.app.http_address, keys, alpn="http/1.1"),
            }

        status = models_pb2_grpc.ModelServiceStub(open_before).GetServerStatus
        status(STATUS)
        assert greetings() == {"server"}
        shutil.copy(keys.renewed, files.cert)  # its key is still the old one's: not to be used
        reload(server)
        assert server.metric("rm_files_refused", files="tls") == 1
        assert greetings() == {"server"}
        shutil.copy(keys.renewed_key, files.key)
        reload(server)
        assert server.metric("rm_files_refused", files="tls") == 0
        assert greetings() == {"renewed"}
        status(STATUS)

        # An authority that is taken away lets nobody in any more.
        shutil.copy(keys.other_ca, files.client_ca)
        reload(server)
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            get(server, keys, "/healthz", with_certificate=True)
        with channel(server, keys, with_certificate=True) as new, pytest.raises(grpc.RpcError) as caught:
            models_pb2_grpc.ModelServiceStub(new).GetServerStatus(STATUS, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", ["client", "127.0.0.1", "localhost"], ids=["CN", "address", "SAN"])
def test_a_certificate_stands_for_a_token(
    tmp_path: Path, keys: Keys, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokens.toml"
    add_token(file, TokenEntry("scorer", Role.SCORE, certificate=name))
    add_token(file, TokenEntry("operator", Role.DEPLOY, sha256=hash_of("operator")))
    tls = TlsSettings(cert=keys.server, key=keys.server_key, client_ca=keys.ca)
    with running(tmp_path / "home", tls=tls, auth=AuthSettings(tokens=file)) as server:
        with channel(server, keys, with_certificate=True) as known:
            models = models_pb2_grpc.ModelServiceStub(known)
            assert models.GetServerStatus(STATUS).device == "cpu"
            load = models_pb2.LoadVersionRequest(selector="m@1")
            code, error = error_of(lambda: models.LoadVersion(load))
            assert (code, error.reason) == (
                grpc.StatusCode.PERMISSION_DENIED,
                errors_pb2.ERROR_REASON_PERMISSION_DENIED,
            )
            code, _ = error_of(lambda: models.LoadVersion(load, metadata=authorization("operator")))
            assert code is grpc.StatusCode.NOT_FOUND
            code, _ = error_of(lambda: models.GetServerStatus(STATUS, metadata=authorization("wrong")))
            assert code is grpc.StatusCode.UNAUTHENTICATED
        assert get(server, keys, "/get_reward", with_certificate=True, method="POST") == 400
        stranger = replace(keys, client=keys.renewed, client_key=keys.renewed_key)
        if name == "client":
            with channel(server, stranger, with_certificate=True) as unknown:
                code, _ = error_of(lambda: models_pb2_grpc.ModelServiceStub(unknown).GetServerStatus(STATUS))
            assert code is grpc.StatusCode.UNAUTHENTICATED
            assert get(server, stranger, "/get_reward", with_certificate=True, method="POST") == 401
        command = ["status", "--server", server.app.grpc_address, "--ca", str(keys.ca)]
        assert cli.main([*command, "--cert", str(keys.client), "--key", str(keys.client_key)]) == 0
        assert cli.main([*command, "--cert", str(keys.client)]) == 1
        monkeypatch.setenv("RM_TLS_CERT", str(keys.client))
        assert cli.main(command) == 1
        monkeypatch.setenv("RM_TLS_KEY", str(keys.client_key))
        assert cli.main(command) == 0
