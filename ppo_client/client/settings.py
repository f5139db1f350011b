"""How a client is set up: arguments first, then the environment, then defaults; checked before anything is sent.

RM_TARGET     where the servers are, as `targets`: one, or several with commas between them
RM_TOKEN      the bearer token
RM_RUN        the training run's id
RM_TLS_CA     path of the PEM file with the certificate authority to trust; turns TLS on
RM_TLS_CERT   and RM_TLS_KEY: paths of the PEM files that the client shows of itself, where servers ask for a
              certificate; turn TLS on
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

from ppo_client.client.errors import InvalidSettings
from ppo_client.client.known_versions import OnVersionChange
from ppo_client.client.retry import RetryPolicy

_RESOLVERS = ("dns", "unix", "unix-abstract", "ipv4", "ipv6", "passthrough", "xds")
"""Names of gRPC that may stand before an address."""

_TLS_VARIABLES = ("RM_TLS_CA", "RM_TLS_CERT", "RM_TLS_KEY")


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS, with PEM files.

    ``ca``: who signed the servers' certificates; None: the public authorities that gRPC ships. ``cert`` and ``key``:
    what the client shows of itself, where servers ask for it (mTLS).
    """

    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidSettings(
                "tls: cert and key (RM_TLS_CERT, RM_TLS_KEY) belong together; only one of them is set"
            )


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings of one client.

    ``timeout_s``: for a whole call, with its retries, unless the call brings its own. ``max_in_flight``: requests on
    the wire at a time; further ones wait on this side. ``max_items_per_request``, ``max_request_bytes``: a larger call
    is split. ``max_message_mb``: a larger reply is refused. ``hedge_after_s``: a scoring request that is not answered
    by then is sent to a second server, too, and the first answer counts; None: never. ``keepalive_s``: while calls are
    under way, a silent connection is asked so often whether it lives (our servers allow 10 s and more).
    ``allow_insecure_token``: sends the token without TLS to other machines, too. ``on_version_change``: what to do when
    a name is answered by another version than before: ``auto``, ``stop``, ``follow`` or ``recalibrate``, see
    `known_versions.OnVersionChange`.
    """

    targets: tuple[str, ...]
    run: str = ""
    token: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    timeout_s: float = 60.0
    max_in_flight: int = 32
    max_items_per_request: int = 256
    max_request_bytes: int = 3 * 1024 * 1024  # below gRPC's own default of 4 MiB, which a proxy may have
    max_message_mb: float = 64.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    hedge_after_s: float | None = None
    keepalive_s: float = 30.0
    allow_insecure_token: bool = False
    on_version_change: OnVersionChange = "auto"

    def __post_init__(self) -> None:
        if not self.targets:
            raise InvalidSettings("no server is named: pass targets, `localhost:50051` say, or set RM_TARGET")
        for target in self.targets:
            _check_target(target)
        if not isinstance(self.run, str):
            raise InvalidSettings(f"run must be text, the id of a training run, got {self.run!r}")
        for name in ("timeout_s", "max_in_flight", "max_items_per_request", "max_request_bytes", "max_message_mb"):
            _check_positive(name, getattr(self, name))
        if not self.max_message_mb < 2048:  # gRPC counts bytes in 31 bits
            raise InvalidSettings(f"max_message_mb must be below 2048, got {self.max_message_mb}")
        if self.on_version_change not in get_args(OnVersionChange):
            known = ", ".join(map(repr, get_args(OnVersionChange)))
            raise InvalidSettings(f"on_version_change is {self.on_version_change!r}; one of {known} is expected")
        _check_positive("keepalive_s", self.keepalive_s)
        if self.hedge_after_s is not None:
            _check_positive("hedge_after_s", self.hedge_after_s)
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise InvalidSettings("the token has characters that no HTTP header can carry; printable ASCII is expected")
        remote = [target for target in self.targets if not is_loopback(target)]
        if remote and self.token and self.tls is None and not self.allow_insecure_token:
            raise InvalidSettings(
                f"the token would travel readable to {', '.join(remote)}: turn TLS on (tls=True, a CA file or "
                "RM_TLS_CA), or say allow_insecure_token=True where the network is trusted"
            )


class Tuning(TypedDict, total=False):
    """The settings that rarely need a change, as arguments of a client; ClientSettings says what they mean."""

    max_in_flight: int
    max_items_per_request: int
    max_request_bytes: int
    max_message_mb: float
    retry: RetryPolicy
    hedge_after_s: float | None
    keepalive_s: float
    allow_insecure_token: bool
    on_version_change: OnVersionChange


def read_settings(
    targets: str | Sequence[str] | None,
    *,
    run: str | None,
    token: str | None,
    tls: bool | str | Path | Tls | None,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    **tuning: Unpack[Tuning],
) -> ClientSettings:
    """Settings from arguments; those that are None come from the environment."""
    environment = os.environ if environment is None else environment
    return ClientSettings(
        targets=read_targets(targets, environment),
        run=environment.get("RM_RUN", "") if run is None else run,
        token=read_token(token, environment),
        tls=read_tls(tls, environment),
        timeout_s=timeout_s,
        **tuning,
    )


def read_targets(targets: str | Sequence[str] | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The servers' addresses, from the argument or RM_TARGET."""
    if targets is None:
        targets = environment.get("RM_TARGET", "")
    if isinstance(targets, str):
        targets = targets.split(",")
    # A server that is named twice would only count twice.
    return tuple(dict.fromkeys(target.strip() for target in targets if target.strip()))


def read_token(token: str | None, environment: Mapping[str, str]) -> str | None:
    """The bearer token, from the argument or RM_TOKEN, without the newline at the end of a file that it was read of."""
    token = environment.get("RM_TOKEN") if token is None else token
    return token if token is None else token.strip()


def read_tls(tls: bool | str | Path | Tls | None, environment: Mapping[str, str]) -> Tls | None:
    """TLS or not: True for public authorities, a CA file's path, a Tls; False: no TLS; None: as RM_TLS_CA, RM_TLS_CERT
    and RM_TLS_KEY say."""
    if tls is None:
        ca, cert, key = (Path(path) if (path := environment.get(name)) else None for name in _TLS_VARIABLES)
        return Tls(ca, cert, key) if ca or cert or key else None
    if isinstance(tls, bool):
        return Tls() if tls else None
    return tls if isinstance(tls, Tls) else Tls(ca=Path(tls))


def is_loopback(target: str) -> bool:
    """Whether the address stays on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    address = target.rpartition(":///")[2]
    for prefix in ("ipv4:", "ipv6:"):
        address = address.removeprefix(prefix)
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_target(target: str) -> None:
    scheme, separator, rest = target.partition("://")
    if separator and scheme not in _RESOLVERS:
        raise InvalidSettings(f"{target!r}: give the gRPC address without `{scheme}://`, `{rest.rstrip('/')}` say")
    if target.startswith(("unix:", "unix-abstract:")):
        return
    if ("," in target or " " in target) and not target.startswith(("ipv4:", "ipv6:")):  # which may be lists, to gRPC
        raise InvalidSettings(f"{target!r} is no address: in a list of servers each stands by itself")
    if not target.rpartition(":")[2].isdigit():
        raise InvalidSettings(f"{target!r} names no port: `host:port` is expected, `localhost:50051` say")


def _check_positive(name: str, value: Any) -> None:
    if not (hasattr(value, "__float__") and 0 < value < math.inf):
        raise InvalidSettings(f"{name} must be a number above 0, got {value!r}")
