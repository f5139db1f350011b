"""Which source wins, and what is said of settings that nobody knows or that have the wrong type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rm_server.config import ConfigError, ServeSettings
from rm_server.config_sources import as_toml, load_settings


def load(tmp_path: Path, toml: str = "", environment: dict[str, str] | None = None, **overrides: Any) -> ServeSettings:
    file = tmp_path / "server.toml"
    file.write_text(toml)
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_settings(ServeSettings, file=file, environment=environment, overrides={"home": "h", **named})


def refusal(tmp_path: Path, toml: str = "", environment: dict[str, str] | None = None, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml, environment, **overrides)
    return str(caught.value)


def test_defaults_then_file_then_environment_then_command_line(tmp_path: Path) -> None:
    toml = "drain_s = 1\nlisten = '127.0.0.1:1'\nhttp = '127.0.0.1:1'\n[engine]\nworkers = 1\n"
    environment = {"RM_SERVER_LISTEN": "127.0.0.1:2", "RM_SERVER_HTTP": "127.0.0.1:2", "RM_SERVER_ENGINE_WORKERS": "2"}
    settings = load(tmp_path, toml, environment, http="127.0.0.1:3", engine__workers="3")
    assert settings.log.level == "info"
    assert settings.drain_s == 1.0
    assert settings.listen == "127.0.0.1:2"
    assert (settings.http, settings.engine.workers) == ("127.0.0.1:3", 3)


def test_every_type_is_read_from_text(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        environment={
            "RM_SERVER_ALLOW_INSECURE": "true",
            "RM_SERVER_DRAIN_S": "2.5",
            "RM_SERVER_TLS_CERT": "/etc/cert.pem",
            "RM_SERVER_TLS_KEY": "/etc/key.pem",
            "RM_SERVER_LOG_FORMAT": "json",
            "RM_SERVER_ENGINE_RUN_WEIGHTS": "{exp-17 = 2, exp-18 = 0.5}",
            "RM_SERVER_TOKEN_FILE": "",
        },
    )
    assert (settings.allow_insecure, settings.drain_s, settings.log.format) == (True, 2.5, "json")
    assert (settings.tls.cert, settings.token_file) == (Path("/etc/cert.pem"), None)
    assert settings.engine.run_weights == {"exp-17": 2.0, "exp-18": 0.5}


def test_other_variables_are_left_alone(tmp_path: Path) -> None:
    load(tmp_path, environment={"RM_TARGET": "localhost:1", "PATH": "/bin"})


def test_catalog_and_artifacts_have_the_variables_of_every_command(tmp_path: Path) -> None:
    shared = {"RM_CATALOG": "postgresql+psycopg://rm@db/rm", "RM_ARTIFACTS": "s3://rewards"}
    settings = load(tmp_path, environment=shared)
    assert (settings.catalog_url, settings.artifacts) == ("postgresql+psycopg://rm@db/rm", "s3://rewards")
    settings = load(tmp_path, environment={"RM_SERVER_ARTIFACTS": "s3://ours", **shared}, catalog_url="sqlite:///x.db")
    assert (settings.catalog_url, settings.artifacts) == ("sqlite:///x.db", "s3://ours")


def test_the_catalog_s_password_is_not_shown(tmp_path: Path) -> None:
    settings = load(tmp_path, environment={"RM_CATALOG": "postgresql+psycopg://rm:secret@db/rm"})
    assert "secret" not in as_toml(settings)
    assert "secret" not in repr(settings)


def test_a_misspelt_setting_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert "engine.max_batch_token (in" in refusal(tmp_path, "[engine]\nmax_batch_token = 1")
    assert "did you mean engine.max_batch_tokens?" in refusal(tmp_path, "[engine]\nmax_batch_token = 1")
    assert "did you mean engine.max_batch_tokens?" in refusal(tmp_path, "max_batch_tokens = 1")
    assert "did you mean RM_SERVER_LISTEN?" in refusal(tmp_path, environment={"RM_SERVER_LISTN": "127.0.0.1:1"})
    assert refusal(tmp_path, drains="1").endswith("did you mean drain_s?")
    assert "known are" in refusal(tmp_path, "zzz = 1")


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[engine]\nworkers = 'many'", "engine.workers (from FILE) is 'many'; expected was a whole number, 0 or more."),
        ("[engine]\nworkers = 1.5", "engine.workers (from FILE) is 1.5; expected was a whole number, 0 or more."),
        ("[engine]\nworkers = true", "engine.workers (from FILE) is True; expected was a whole number, 0 or more."),
        ("[engine]\nworkers = -1", "engine.workers (from FILE) is -1; expected was a whole number, 0 or more."),
        ("drain_s = nan", "drain_s (from FILE) is nan; expected was a number, 0 or more."),
        ("allow_insecure = 1", "allow_insecure (from FILE) is 1; expected was true or false."),
        ("listen = 50051", "listen (from FILE) is 50051; expected was a text."),
        ("[tls]\ncert = 1", "tls.cert (from FILE) is 1; expected was a path."),
        ("[log]\nformat = 'xml'", "log.format (from FILE) is 'xml'; expected was one of 'logfmt', 'json'."),
        (
            "[engine.run_weights]\na = 'b'",
            "engine.run_weights (from FILE) is {'a': 'b'}; "
            "expected was a table of which each value is a number, 0 or more.",
        ),
        ("engine = 3", "engine (in FILE) is 3; it is a section: write [engine] and its settings below."),
    ],
)
def test_a_wrong_type_says_what_came_and_what_was_expected(tmp_path: Path, toml: str, expected: str) -> None:
    assert refusal(tmp_path, toml) == expected.replace("FILE", str(tmp_path / "server.toml"))


def test_a_wrong_text_names_its_variable(tmp_path: Path) -> None:
    assert refusal(tmp_path, environment={"RM_SERVER_ALLOW_INSECURE": "perhaps"}) == (
        "allow_insecure (from RM_SERVER_ALLOW_INSECURE) is 'perhaps'; expected was true or false."
    )


def test_what_has_no_default_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="home is not set: give --home, RM_SERVER_HOME or `home`"):
        load_settings(ServeSettings)


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        load_settings(ServeSettings, file=tmp_path / "nowhere.toml")
    assert "is no TOML" in refusal(tmp_path, "listen = ")


def test_the_settings_that_are_shown_give_the_same_settings(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        drain_s="2.5",
        listen="[::1]:0",
        token="s3cret",
        engine__deterministic="true",
        engine__run_weights='{"exp 17" = 2}',
        tls__cert="a.pem",
        tls__key="b.pem",
    )
    shown = as_toml(settings)
    assert "s3cret" not in shown
    assert "# token_file =" in shown
    file = tmp_path / "shown.toml"
    file.write_text(shown)
    assert load_settings(ServeSettings, file=file, overrides={"token": "s3cret"}) == settings


@pytest.mark.parametrize(
    "variable",
    ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP", "PORT_50051_TCP_ADDR"],
)
def test_what_kubernetes_says_of_a_service_of_our_name_is_no_setting(tmp_path: Path, variable: str) -> None:
    environment = {f"RM_SERVER_{variable}": "tcp://10.0.0.1:50051", "RM_SERVER_HOME": str(tmp_path)}
    assert load_settings(ServeSettings, environment=environment).home == tmp_path
