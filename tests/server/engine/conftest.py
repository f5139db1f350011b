"""What both kinds of workers must do is tested with both."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[0, 2], ids=["thread", "processes"])
def workers(request: pytest.FixtureRequest) -> int:
    """How many worker processes; 0: a thread of this one."""
    number: int = request.param
    return number
