"""How a benchmark ends before its time."""

from __future__ import annotations

import signal


def end_as_by_ctrl_c() -> None:
    """SIGTERM does what Ctrl-C does, which asyncio understands: servers and other processes end with their blocks.

    Also in a shell's background job, which is started with SIGINT ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
