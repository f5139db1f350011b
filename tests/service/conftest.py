"""Versions and a server that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import RunningServer, make_version, running


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of four versions that score differently."""
    root = tmp_path_factory.mktemp("versions")
    return [make_version(root / f"v{seed}", seed) for seed in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, versions: list[Path]) -> Iterator[RunningServer]:
    """A server with helpfulness@1 (stable) and @2 (canary)."""
    with running(tmp_path_factory.mktemp("home")) as server:
        server.deploy("helpfulness", *versions[:2])
        yield server
