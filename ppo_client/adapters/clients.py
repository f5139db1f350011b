"""One client for each service in a process, for trainers that know functions only."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ppo_client.client.client import RewardClient

_clients: dict[str | tuple[str, ...] | None, RewardClient] = {}
_lock = threading.Lock()


def shared_client(targets: str | Sequence[str] | None = None) -> RewardClient:
    """The process's client for these servers: a list, or a text with commas between them; None: RM_TARGET, read at the
    first call."""
    key = targets if targets is None or isinstance(targets, str) else tuple(targets)
    with _lock:
        if key not in _clients:
            _clients[key] = RewardClient(key)
        return _clients[key]
