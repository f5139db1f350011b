"""One client for each service in a process, for trainers that know functions only."""

from __future__ import annotations

import threading

from ppo_client.client.client import RewardClient

_clients: dict[str | None, RewardClient] = {}
_lock = threading.Lock()


def shared_client(targets: str | None = None) -> RewardClient:
    """The process's client for these servers (commas between several); None: RM_TARGET, read at the first call."""
    with _lock:
        if targets not in _clients:
            _clients[targets] = RewardClient(targets)
        return _clients[targets]
