from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ppo_client import RewardClient
from ppo_client.client.errors import InvalidSettings
from ppo_client.client.settings import ClientSettings, Tls, is_loopback, read_settings


def read(targets: Any = None, environment: dict[str, str] | None = None, **given: Any) -> ClientSettings:
    arguments = {"run": None, "token": None, "tls": None, "timeout_s": 60.0} | given
    return read_settings(targets, environment=environment or {}, **arguments)


ENVIRONMENT = {"RM_TARGET": "a:1, b:2", "RM_TOKEN": "secret", "RM_RUN": "exp-1", "RM_TLS_CA": "/ca.pem"}


def test_what_is_not_given_comes_from_the_environment() -> None:
    settings = read(environment=ENVIRONMENT)
    assert settings.targets == ("a:1", "b:2")
    assert (settings.token, settings.run, settings.tls) == ("secret", "exp-1", Tls(ca=Path("/ca.pem")))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RM_TLS_CA": "", "RM_TLS_CERT": "", "RM_TLS_KEY": ""}, None),
        ({"RM_TLS_CERT": "/c.pem", "RM_TLS_KEY": "/k.pem"}, Tls(cert=Path("/c.pem"), key=Path("/k.pem"))),
        (
            {"RM_TLS_CA": "/ca.pem", "RM_TLS_CERT": "/c.pem", "RM_TLS_KEY": "/k.pem"},
            Tls(Path("/ca.pem"), Path("/c.pem"), Path("/k.pem")),
        ),
    ],
)
def test_what_is_trusted_and_shown_comes_from_the_environment(
    environment: dict[str, str], expected: Tls | None
) -> None:
    assert read("a:1", environment).tls == expected
    assert read("a:1", environment, tls=False).tls is None
    assert read("a:1", environment, tls="own.pem").tls == Tls(ca=Path("own.pem"))


def test_arguments_win() -> None:
    settings = read(["c:3"], ENVIRONMENT, run="", token="", tls=False)
    assert (settings.targets, settings.token, settings.run, settings.tls) == (("c:3",), "", "", None)


def test_the_client_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RM_TARGET", "localhost:7")
    monkeypatch.setenv("RM_RUN", "exp-2")
    assert RewardClient().settings.targets == ("localhost:7",)
    assert RewardClient().settings.run == "exp-2"


def test_a_token_may_be_as_its_file_has_it_and_must_fit_into_a_header() -> None:
    assert (
        read("localhost:7", {"RM_TOKEN": "secret\n"}).token == read("localhost:7", token="secret\n").token == "secret"
    )
    for token in ("se\ncret", "geheimnißvoll"):
        with pytest.raises(InvalidSettings, match="printable ASCII is expected"):
            read("localhost:7", token=token)


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ("a:1", ("a:1",)),
        ("a:1,b:2", ("a:1", "b:2")),
        (["a:1", " b:2 ", "a:1", ""], ("a:1", "b:2")),
        (["ipv4:10.0.0.1:1,10.0.0.2:1"], ("ipv4:10.0.0.1:1,10.0.0.2:1",)),
        ("dns:///rewards:50051", ("dns:///rewards:50051",)),
        ("unix:/tmp/rm.sock", ("unix:/tmp/rm.sock",)),
        ("[::1]:50051", ("[::1]:50051",)),
    ],
)
def test_targets(given: Any, targets: tuple[str, ...]) -> None:
    assert read(given).targets == targets


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "RM_TARGET"),
        ("", "RM_TARGET"),
        ("localhost", "no port"),
        ("http://localhost:50051/", "without `http://`, `localhost:50051`"),
        ("localhost:http", "no port"),
        (["a:1,b:2"], "each stands by itself"),
    ],
)
def test_targets_that_cannot_be_are_refused(given: Any, says: str) -> None:
    with pytest.raises(InvalidSettings, match=says):
        read(given)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:1", True),
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("unix:/tmp/x", True),
        ("unix:///tmp/x", True),
        ("10.0.0.1:1", False),
        ("rewards:50051", False),
        ("dns:///rewards:50051", False),
        ("[2001:db8::1]:1", False),
        ("localhost.example.com:1", False),
        ("ipv4:10.0.0.1:1", False),
    ],
)
def test_what_stays_on_this_machine(target: str, expected: bool) -> None:
    assert is_loopback(target) is expected


def test_a_token_does_not_travel_readable_to_another_machine_unless_told() -> None:
    with pytest.raises(InvalidSettings, match="readable to rewards:1"):
        read(["localhost:1", "rewards:1"], token="secret")
    read("localhost:1", token="secret")
    read("rewards:1", token="secret", tls=True)
    read("rewards:1", token="secret", allow_insecure_token=True)
    read("rewards:1")


@pytest.mark.parametrize(
    ("tls", "expected"),
    [(None, None), (False, None), (True, Tls()), ("/ca.pem", Tls(Path("/ca.pem"))), (Tls(Path("/x")), Tls(Path("/x")))],
)
def test_tls(tls: Any, expected: Tls | None) -> None:
    assert read("a:1", tls=tls).tls == expected


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="belong together"):
        Tls(cert=Path("/cert.pem"))
    for name in ("RM_TLS_CERT", "RM_TLS_KEY"):
        with pytest.raises(InvalidSettings, match=r"\(RM_TLS_CERT, RM_TLS_KEY\) belong together"):
            read("a:1", {"RM_TLS_CA": "/ca.pem", name: "/one.pem"})


@pytest.mark.parametrize(
    "name", ["timeout_s", "max_in_flight", "max_items_per_request", "max_request_bytes", "hedge_after_s", "keepalive_s"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan"), "2"])
def test_numbers_that_make_no_sense_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidSettings, match=name):
        read("a:1", **{name: value})


def test_a_run_is_named_by_text() -> None:
    with pytest.raises(InvalidSettings, match="run must be text, the id of a training run, got 17"):
        read("a:1", run=17)


def test_a_message_that_grpc_cannot_hold_is_refused() -> None:
    assert read("a:1", max_message_mb=2047).max_message_mb == 2047
    with pytest.raises(InvalidSettings, match="max_message_mb must be below 2048, got 2048"):
        read("a:1", max_message_mb=2048)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="max_inflight"):
        RewardClient("a:1", max_inflight=3)


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(read("localhost:1", token="secret"))
    assert "secret" not in repr(RewardClient("localhost:1", token="secret"))
