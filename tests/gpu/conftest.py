"""Tests that need a CUDA device are skipped where there is none; `pytest tests/gpu` runs them."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A reason for each, rather than silence."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=f"torch {torch.__version__} sees no CUDA device"))
