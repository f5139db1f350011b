"""Files of preference pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from preference_pairs import make_pairs


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., Path]:
    """Writes so many pairs into the test's folder."""
    return lambda num_pairs=240: make_pairs(tmp_path / "pairs.jsonl", num_pairs)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 pairs, for the tests of a module together."""
    return make_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl")
