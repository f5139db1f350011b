"""The tokens file: who may call, by a token's hash or a certificate's name, with role, expiry, models and limits.

    [[token]]
    name = "trainer-1"              # what history and logs call whoever shows it
    sha256 = "9f86d081884c7d65…"    # of the token's text; or certificate = "a CN or SAN of a client's certificate"
    role = "score"                  # score, deploy or admin; each includes the one before
    expires = 2027-01-31T00:00:00Z  # all below are optional: for ever,
    models = ["helpfulness", "style-*"]   # all models,
    max_requests_per_s = 100.0      # and without limits
    max_items_per_s = 5000.0
    max_concurrent_requests = 32

`token = []` in place of entries lets nobody in. A file with neither is refused: it is one that is being written, say.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from rm_server.api.buckets import Limits
from rm_server.api.roles import Role
from rm_server.config import ConfigError

ROLES = {role.word: role for role in Role if role is not Role.PUBLIC}
SINGLE_TOKEN_NAME = "token"  # noqa: S105, a name
"""What the one token of ``token`` or ``token_file`` is called; its role is admin."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIMITS = ("max_requests_per_s", "max_items_per_s", "max_concurrent_requests")
_KEYS = ("name", "sha256", "certificate", "role", "expires", "models", *_LIMITS)


def hash_of(token: str) -> bytes:
    """SHA-256 of the token's text.

    A plain hash is right here: our tokens are 32 random bytes, which nobody can guess from it, however fast it is.
    Slow hashes and salts are for passwords, and would cost every call milliseconds.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One entry. Either ``sha256``, 32 bytes, or ``certificate`` is set. Empty ``models``: all of them."""

    name: str
    role: Role
    sha256: bytes = b""
    certificate: str = ""
    expires: datetime | None = None
    models: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def credential(self) -> bytes | str:
        """What a caller shows: the hash of a token, or the name of a certificate."""
        return self.sha256 or self.certificate

    def can_touch(self, model: str) -> bool:
        """Whether one of the globs means the model; ``*`` crosses slashes."""
        return not self.models or _pattern(self.models).match(model) is not None


@lru_cache(maxsize=1024)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)))


def parse_tokens(text: str, source: str) -> tuple[TokenEntry, ...]:
    """The entries of a file. Raises ConfigError, naming ``source`` and the entry."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The tokens file {source} is no TOML: {error}.") from error
    tables = content.pop("token", None)
    if content:
        raise ConfigError(f"The tokens file {source} has {', '.join(content)}; only [[token]] entries were expected.")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(
            f"The tokens file {source} has no [[token]] entries. `rm-server token new` adds them; "
            "`token = []` says that nobody may call."
        )
    entries = tuple(_entry(table, f"{source}, token {index}") for index, table in enumerate(tables, start=1))
    _check_unique(entries, source)
    return entries


def _entry(table: Mapping[str, Any], where: str) -> TokenEntry:
    for key in table:
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(_KEYS)}."
            raise ConfigError(f"{where}: {key} is no setting of a token; {hint}")
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: name is {name!r}; letters, digits, '.', '_', '@' and '-' were expected, 1 to 100 of them."
        )
    where = f"{where} ({name})"
    if ("sha256" in table) == ("certificate" in table):
        raise ConfigError(f"{where}: one of sha256 and certificate was expected.")
    if not isinstance(table.get("role"), str) or table["role"] not in ROLES:
        raise ConfigError(f"{where}: role is {table.get('role')!r}; one of {', '.join(ROLES)} was expected.")
    return TokenEntry(
        name=name,
        role=ROLES[table["role"]],
        sha256=_read(table, "sha256", where, _digest, "64 lower-case hexadecimal digits", b""),
        certificate=_read(table, "certificate", where, _text, "a name in the certificate", ""),
        expires=_read(table, "expires", where, _time, "a date-time with its zone: 2027-01-31T00:00:00Z", None),
        models=_read(table, "models", where, _globs, "a list of names or globs that is not empty", ()),
        limits=Limits(
            max_requests_per_s=_read(table, "max_requests_per_s", where, _rate, "a number above 0", None),
            max_items_per_s=_read(table, "max_items_per_s", where, _rate, "a number above 0", None),
            max_concurrent_requests=_read(
                table, "max_concurrent_requests", where, _count, "a whole number above 0", None
            ),
        ),
    )


def _read(
    table: Mapping[str, Any], key: str, where: str, convert: Callable[[Any], Any], expected: str, default: Any
) -> Any:
    if key not in table:
        return default
    try:
        return convert(table[key])
    except (OverflowError, TypeError, ValueError):
        raise ConfigError(f"{where}: {key} is {table[key]!r}; expected was {expected}.") from None


def _require(is_right: bool) -> None:
    if not is_right:
        raise ValueError


def _digest(value: Any) -> bytes:
    _require(_SHA256.fullmatch(value) is not None)
    return bytes.fromhex(value)


def _text(value: Any) -> str:
    _require(isinstance(value, str) and bool(value.strip()))
    return str(value)


def _time(value: Any) -> datetime:
    _require(isinstance(value, datetime) and value.tzinfo is not None)
    time: datetime = value
    return time.astimezone(UTC)


def _globs(value: Any) -> tuple[str, ...]:
    _require(isinstance(value, list) and bool(value) and all(isinstance(glob, str) and glob for glob in value))
    return tuple(value)


def _rate(value: Any) -> float:
    _require(not isinstance(value, bool) and 0 < value < float("inf"))
    return float(value)


def _count(value: Any) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool) and value > 0)
    return int(value)


def _check_unique(entries: Sequence[TokenEntry], source: str) -> None:
    for what, values in (
        ("name", [entry.name for entry in entries]),
        ("token or certificate", [entry.credential for entry in entries]),
    ):
        for index, value in enumerate(values):
            if value in values[:index]:
                name = entries[index].name
                raise ConfigError(f"The tokens file {source} has the {what} of {name} twice; keep one of the entries.")
