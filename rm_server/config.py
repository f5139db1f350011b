"""Settings: small frozen dataclasses with defaults; each part of the server gets only its own."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LONGEST_LEASE_S = 7 * 24 * 3600.0


class ConfigError(Exception):
    """A setting that is unknown, of the wrong type, or makes no sense with the others. The text is for people."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How loaded versions compute, and how much work may wait for them.

    ``device``: where the workers compute. ``cpu``; ``cuda:0``: all on this GPU; ``cuda``: each on a GPU of its own.
    ``workers``: processes that compute; 0 computes in a thread of the server's own process.
    ``threads_per_worker``: threads of each worker; 0: the cores, divided between the workers. On a CPU, a worker that
    computes while no other has anything to do takes the threads of all.
    ``precision``: for a load that names none, of a version without a serving profile. ``prepack``: oneDNN weights on
    CPU. ``deterministic``: bit-identical scores whatever the batch.
    ``max_batch_tokens``, ``max_batch_items``: the budget of one forward pass, where a prompt that is computed once for
    its completions counts once; a longer item goes alone.
    ``batches_in_flight``: per worker; the second one lies in its pipe while the first computes.
    ``batch_timeout_s``: a worker that computes one batch for longer, and for many times what it should take, is ended
    and replaced: it hangs.
    ``max_queued_items``, ``max_queued_tokens``: beyond them a call is refused at once.
    ``max_yield_s``: for how long a large call lets later, smaller ones of its run go first, at most.
    ``run_weights``: a run's share of the turns; 1.0 where it is not named.
    ``max_background_items``, ``max_background_tokens``: what shadows may have waiting; beyond them it is dropped.
    ``crowded_share``: while the callers' queue is filled above this share of its bounds, all that is dropped.
    ``memory_limit_mb``: what loaded versions may hold, in MiB; 0: what the machine, or the GPU, has.
    ``min_stay_s``: for how long a version that came back into memory for a request makes no room for another one.
    ``encode_threads``: threads that turn text into tokens. ``cache_items``: scores kept in the result cache; 0: none.
    """

    device: str = "cpu"
    workers: int = 1
    threads_per_worker: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    prepack: bool = True
    deterministic: bool = False
    max_batch_tokens: int = 4096
    max_batch_items: int = 512
    batches_in_flight: int = 2
    batch_timeout_s: float = 300.0
    max_queued_items: int = 16_384
    max_queued_tokens: int = 2_000_000
    max_yield_s: float = 5.0
    run_weights: Mapping[str, float] = field(default_factory=dict)
    max_background_items: int = 1024
    max_background_tokens: int = 131_072
    crowded_share: float = 0.05
    memory_limit_mb: float = 0.0
    min_stay_s: float = 10.0
    encode_threads: int = 2
    cache_items: int = 100_000

    @property
    def has_gpu_each(self) -> bool:
        """Whether each worker process computes on a GPU of its own."""
        return self.device == "cuda" and self.workers > 0

    def __post_init__(self) -> None:
        names = ("max_batch_tokens", "max_batch_items", "batches_in_flight", "encode_threads")
        background = ("max_background_items", "max_background_tokens")
        for name in (*names, "max_queued_items", "max_queued_tokens", *background):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("memory_limit_mb", "min_stay_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"engine.{name} is {getattr(self, name)}; it must not be below 0.")
        if not self.batch_timeout_s > 0:
            raise ConfigError(f"engine.batch_timeout_s is {self.batch_timeout_s}; it must be above 0.")
        if not 0 <= self.crowded_share <= 1:
            raise ConfigError(f"engine.crowded_share is {self.crowded_share}; a share between 0 and 1 was expected.")
        for run, weight in self.run_weights.items():
            if not weight > 0:
                raise ConfigError(f"engine.run_weights: the weight of {run!r} is {weight}; it must be above 0.")

    @property
    def memory_limit_bytes(self) -> int:
        """``memory_limit_mb`` in bytes."""
        return int(self.memory_limit_mb * 1024 * 1024)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What one call may carry. ``max_items_per_request``: completions of all its groups together; as many groups."""

    max_items_per_request: int = 4096

    def __post_init__(self) -> None:
        if self.max_items_per_request < 1:
            raise ConfigError(f"limits.max_items_per_request is {self.max_items_per_request}; it must be at least 1.")


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """Following the catalog. ``poll_s``: how often it is looked whether another server, or a command, changed it.

    ``policy``: ``availability`` loads the new version before it unloads the old one; ``resource`` unloads first, for
    devices that have no room for both, and nothing serves in between.
    """

    poll_s: float = 0.5
    policy: Literal["availability", "resource"] = "availability"

    def __post_init__(self) -> None:
        if not 0 < self.poll_s <= 60:
            raise ConfigError(f"catalog.poll_s is {self.poll_s}; above 0 and up to 60 seconds was expected.")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Training runs. ``lease_s``: a lease ends so long after the last sign of life; at most 7 days.

    ``max_known_runs``: beyond it, the run that was seen longest ago and has no lease is forgotten.
    """

    lease_s: float = 900.0
    max_known_runs: int = 10_000

    def __post_init__(self) -> None:
        if not self.lease_s > 0:
            raise ConfigError(f"runs.lease_s is {self.lease_s}; it must be above 0.")
        if self.lease_s > LONGEST_LEASE_S:
            raise ConfigError(f"runs.lease_s is {self.lease_s:g}; it must be at most {LONGEST_LEASE_S:g} (7 days).")
        if self.max_known_runs < 1:
            raise ConfigError(f"runs.max_known_runs is {self.max_known_runs}; it must be at least 1.")


@dataclass(frozen=True, slots=True)
class ShadowSettings:
    """The comparison of shadows with the versions that callers get.

    ``log_texts``: keep prompts and completions beside their scores, so that reports can show them.
    ``max_pairs``: scored completions kept of each shadow with each version; the newest stay.
    ``flush_interval_s``: they are written to the catalog so often. ``max_buffered_pairs``: kept in memory until then,
    and while the catalog is away; beyond that the oldest are dropped.
    """

    log_texts: bool = False
    max_pairs: int = 20_000
    flush_interval_s: float = 5.0
    max_buffered_pairs: int = 20_000

    def __post_init__(self) -> None:
        for name in ("max_pairs", "max_buffered_pairs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"shadow.{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.flush_interval_s > 0:
            raise ConfigError(f"shadow.flush_interval_s is {self.flush_interval_s}; it must be above 0.")


@dataclass(frozen=True, slots=True)
class ScoreLogSettings:
    """A log of scored items as Parquet files, which `rm-server scores` reads.

    ``path``: a folder; a relative one is inside the home. None: no log. ``share``: of the calls, 0 to 1. ``log_texts``:
    prompts and completions, too. A file is closed at ``rotate_rows`` items, at ``rotate_mb`` of memory (or half of
    ``max_buffered_mb``), or after ``rotate_s``: what a killed server had not written yet is lost. ``max_buffered_mb``:
    in memory; beyond it, items are dropped. ``keep_mb``: of files; the oldest are deleted beyond it. 0: all are kept.
    """

    path: Path | None = None
    share: float = 1.0
    log_texts: bool = False
    rotate_rows: int = 50_000
    rotate_mb: float = 32.0
    rotate_s: float = 60.0
    max_buffered_mb: float = 256.0
    keep_mb: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"score_log.share is {self.share}; a share between 0 and 1 was expected.")
        for name in ("rotate_rows", "rotate_mb", "rotate_s", "max_buffered_mb"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"score_log.{name} is {getattr(self, name)}; it must be above 0.")
        if not self.keep_mb >= 0:
            raise ConfigError(f"score_log.keep_mb is {self.keep_mb}; it must not be below 0.")


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """How calls travel.

    ``max_message_mb``: a larger gRPC message or HTTP body is refused. ``max_concurrent_streams``: calls under way on
    one connection. ``max_stream_requests``: requests under way on one stream (ScoreStream, or the Open Inference
    Protocol's); the rest waits in the network.
    ``max_connection_age_s``: a connection is closed then, so that clients spread over new servers; its calls have
    ``max_connection_age_grace_s`` to finish. 0: never. ``keepalive_time_s``: a silent connection is asked so often
    whether it lives, and is given up after ``keepalive_timeout_s``. ``min_ping_interval_s``: clients may ask so often.
    """

    max_message_mb: float = 64.0
    max_concurrent_streams: int = 1024
    max_stream_requests: int = 64
    max_connection_age_s: float = 1800.0
    max_connection_age_grace_s: float = 600.0
    keepalive_time_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    min_ping_interval_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.max_message_mb > 0:
            raise ConfigError(f"transport.max_message_mb is {self.max_message_mb}; it must be above 0.")
        if not self.max_message_mb < 2048:  # gRPC counts bytes in 31 bits
            raise ConfigError(f"transport.max_message_mb is {self.max_message_mb}; it must be below 2048.")
        for name in ("max_concurrent_streams", "max_stream_requests"):
            if getattr(self, name) < 1:
                raise ConfigError(f"transport.{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def max_message_bytes(self) -> int:
        """``max_message_mb`` in bytes."""
        return int(self.max_message_mb * 1024 * 1024)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """PEM files, for gRPC and HTTP alike. ``client_ca``: callers must show a certificate that it signed (mTLS)."""

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("tls.cert and tls.key belong together; only one of them is set.")
        if self.client_ca is not None and self.cert is None:
            raise ConfigError("tls.client_ca needs tls.cert and tls.key.")

    @property
    def is_on(self) -> bool:
        """Whether connections are encrypted."""
        return self.cert is not None


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Who may call. ``tokens``: the file of tokens with roles and limits; it is read again when it changes.

    ``metrics_need_token``: so does ``/metrics``, and one for all models; it is open otherwise, as the probes are.
    """

    tokens: Path | None = None
    metrics_need_token: bool = False


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The log on stderr. ``access_share``: the share of calls, 0 to 1, that leave a line; defects always do."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["logfmt", "json"] = "logfmt"
    access_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.access_share <= 1:
            raise ConfigError(f"log.access_share is {self.access_share}; a share between 0 and 1 was expected.")


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """OpenTelemetry. ``endpoint``: the URL that takes traces, OTLP over HTTP, for example
    ``http://127.0.0.1:4318/v1/traces``; empty: no tracing.

    ``sample_share``: of the calls that bring no trace of their own, 0 to 1, this share is traced.
    """

    endpoint: str = ""
    sample_share: float = 1.0

    def __post_init__(self) -> None:
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"tracing.endpoint is {self.endpoint!r}; a URL was expected, for example "
                "http://127.0.0.1:4318/v1/traces."
            )
        if not 0 <= self.sample_share <= 1:
            raise ConfigError(f"tracing.sample_share is {self.sample_share}; a share between 0 and 1 was expected.")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What `rm-server serve` runs with.

    ``home``: the folder of catalog and artifacts. ``catalog_url``: a database that several servers share, as a URL of
    SQLAlchemy; empty: a file in the home. ``artifacts``: a folder, or a store that several servers share, as a URL of
    fsspec; empty: a folder in the home. ``listen``, ``http``: addresses as HOST:PORT; port 0: the system
    chooses; empty ``http``: none. ``allow_insecure``: may listen beyond loopback without TLS and tokens.
    ``token``, ``token_file``: one token that may do everything, beside those of ``auth.tokens``. The file is read again
    when it changes.
    ``default_model``: the selector behind the bare HTTP paths. ``drain_s``: calls under way have so long to finish
    after SIGTERM.
    """

    home: Path
    catalog_url: str = field(default="", repr=False)
    artifacts: str = ""
    listen: str = "127.0.0.1:50051"
    http: str = "127.0.0.1:8080"
    allow_insecure: bool = False
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    default_model: str = ""
    drain_s: float = 30.0
    transport: TransportSettings = field(default_factory=TransportSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    log: LogSettings = field(default_factory=LogSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    catalog: CatalogSettings = field(default_factory=CatalogSettings)
    runs: RunSettings = field(default_factory=RunSettings)
    shadow: ShadowSettings = field(default_factory=ShadowSettings)
    score_log: ScoreLogSettings = field(default_factory=ScoreLogSettings)

    def __post_init__(self) -> None:
        if self.token and self.token_file is not None:
            raise ConfigError("token and token_file are both set; keep one of them.")
        has_tokens = bool(self.token) or self.token_file is not None or self.auth.tokens is not None
        if self.auth.metrics_need_token and not has_tokens:
            raise ConfigError("auth.metrics_need_token is set, and there are no tokens: set auth.tokens, too.")
        is_guarded = self.tls.is_on and (has_tokens or self.tls.client_ca is not None)
        for name, address in (("listen", self.listen), ("http", self.http)):
            if not address and name == "http":
                continue
            host, _ = parse_address(name, address)
            if not (is_loopback(host) or is_guarded or self.allow_insecure):
                raise ConfigError(
                    f"{name} is {address!r}: that listens beyond this machine, which needs TLS (tls.cert, tls.key) "
                    "and tokens (auth.tokens, or token_file) or client certificates (tls.client_ca). Listen on "
                    "127.0.0.1, set those, or say --insecure-listen (allow_insecure) where the network itself is "
                    "guarded."
                )


def parse_address(name: str, address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; ``name`` is the setting, for the message."""
    host, colon, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{name} is {address!r}; HOST:PORT was expected, for example 127.0.0.1:50051 or [::1]:0.")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name that is not ``localhost`` counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
