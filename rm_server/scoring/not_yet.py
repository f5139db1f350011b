"""What callers are told of a version that should be on this server and is not for now. Pure.

Another server may have it meanwhile: these are errors that clients repeat there, or here after a while.
"""

from __future__ import annotations

from rm_server.engine.deployment import VersionStatus
from rm_server.errors import Draining, RmError, passes
from rm_server.registry.records import VersionKey, version_name

LOADING_RETRY_S = 0.5


def not_yet(key: VersionKey, status: VersionStatus, is_wanted: bool, whose: str = "") -> RmError | None:
    """What to raise; None: nobody wants it here, or what it lacks does not pass. ``whose``: goes after its name."""
    if not is_wanted:
        return None
    name, error = version_name(key) + whose, status.error
    if status.state in ("REGISTERED", "LOADING"):
        return Draining(f"{name} is being loaded on this server; come back soon.", retry_after_s=LOADING_RETRY_S)
    if passes(error):  # its load is tried again by itself
        return type(error)(f"{name} is not loaded on this server: {error.message}", retry_after_s=error.retry_after_s)
    return None
