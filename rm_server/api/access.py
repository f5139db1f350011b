"""Who calls: the bearer token of a call, over gRPC and HTTP alike, becomes the name that the history records."""

from __future__ import annotations

import hashlib
import hmac

from rm_server.errors import Unauthenticated
from rm_server.registry.home import operating_system_user

SHARED_ACTOR = "token"
"""Who changed something, where all callers share one token."""


class Access:
    """Knows the server's token, as its hash. Without a token everybody may call: the server listens on loopback."""

    def __init__(self, token: str = "") -> None:
        self._token_hash = _hash(token) if token else None
        self._user = operating_system_user()

    def actor_of(self, authorization: str | bytes | None) -> str:
        """Who calls, by the value of ``authorization`` (``Bearer <token>``).

        Without a token on this server it is the operating system's user that runs it. Raises Unauthenticated.
        """
        if self._token_hash is None:
            return self._user
        text = authorization.decode("utf-8", "replace") if isinstance(authorization, bytes) else authorization or ""
        scheme, _, token = text.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_hash(token.strip()), self._token_hash):
            raise Unauthenticated("This server wants a token it knows, as `authorization: Bearer <token>`.")
        return SHARED_ACTOR


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
