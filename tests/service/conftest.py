"""Versions and a server that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import Gate, RunningServer, make_version, running

from rm_server.backends import loading
from rm_server.backends.interface import Backend, ComputeSettings
from rm_server.backends.items import Batch, Float64Array
from rm_server.registry.manifest import Manifest


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


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate before every backend that is loaded from now on in this process."""
    gate = Gate()
    load_backend = loading.load_backend

    class GatedBackend:
        def __init__(self, backend: Backend) -> None:
            self._backend = backend
            self.memory_bytes = backend.memory_bytes
            self.precision = backend.precision

        def score(self, batch: Batch) -> Float64Array:
            gate.pass_through(batch)
            return self._backend.score(batch)

    def load_gated(folder: Path, manifest: Manifest, settings: ComputeSettings) -> Backend:
        return GatedBackend(load_backend(folder, manifest, settings))

    monkeypatch.setattr(loading, "load_backend", load_gated)
    # Else rules would be scored on the server's event loop, past the gate.
    monkeypatch.setattr(loading, "load_weightless", lambda folder, manifest: None)
    yield gate
    gate.open()
