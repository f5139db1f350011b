"""The promises of the structure that no linter sees: what an import costs, and what the names on disk are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after the statement."""
    program = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_client_needs_only_grpc_and_protobuf() -> None:
    loaded = modules_after("import ppo_client; ppo_client.RewardClient('localhost:1')")
    assert {"grpc", "google"} <= loaded
    assert not loaded & {"torch", "transformers", "numpy", "rm_server", "aiohttp", "prometheus_client"}


@pytest.mark.parametrize(
    ("cli", "command"),
    [
        ("rm_server.cli", ()),
        ("rm_server.cli", ("train",)),
        ("rm_server.cli", ("evaluate",)),
        ("ppo_client.cli", ()),
        ("ppo_client.cli", ("train",)),
        ("ppo_client.cli", ("report",)),
    ],
)
def test_help_is_quick_because_it_loads_nothing_heavy(cli: str, command: tuple[str, ...]) -> None:
    arguments = [*command, "--help"]
    loaded = modules_after(f"import {cli} as cli\ntry:\n    cli.main({arguments})\nexcept SystemExit:\n    pass")
    assert not loaded & {"torch", "transformers", "trl", "datasets", "sqlalchemy", "scipy", "matplotlib"}


def test_generated_code_belongs_to_the_protos() -> None:
    done = subprocess.run([sys.executable, ROOT / "proto" / "check_fresh.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_package_of_ours_is_called_like_a_stranger() -> None:
    """`proto` belongs to proto-plus, and `tests/rm_server` would hide the real package."""
    assert not (ROOT / "proto" / "__init__.py").exists()
    assert not (ROOT / "tests" / "rm_server").exists()
    assert not (ROOT / "tests" / "ppo_client").exists()


@pytest.mark.parametrize("package", ["rm_server", "ppo_client"])
def test_every_file_says_its_idea_in_the_first_line(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*.py")
        if path.stat().st_size and "migrations/versions" not in path.as_posix()
        if not path.read_text().lstrip().startswith('"""')
    ]
    assert not silent
