"""For all tests: generated examples are the same each time, and may take the time that a busy machine gives them;
what libraries keep for a whole process is not kept from one test to the next."""

import sys
from collections.abc import Iterator

import pytest

try:
    from hypothesis import settings
except ModuleNotFoundError:  # a machine with a GPU may have no more than tests/gpu needs
    pass
else:
    settings.register_profile("suite", deadline=None, derandomize=True)
    settings.load_profile("suite")


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state per process, with its precision; a run has a process to itself, a test has not."""
    _forget_accelerator()
    yield
    _forget_accelerator()


def _forget_accelerator() -> None:
    if (accelerate := sys.modules.get("accelerate.state")) is not None:
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)
