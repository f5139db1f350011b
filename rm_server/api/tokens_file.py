"""The tokens file on disk: entries are added and taken out in one step, and what people wrote around them stays."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

from rm_server.api.tokens import TokenEntry, parse_tokens
from rm_server.config import ConfigError

TOKEN_BYTES = 32
TOKEN_PREFIX = "rm_"  # noqa: S105, no secret: by it, scanners of repositories and logs find a token that got there
NEW_FILE_MODE = 0o600

_HEADER = (
    "# Who may call rm-server. `rm-server token new` and `token revoke` change this file; running servers follow.\n"
)
_NOBODY = "token = []  # nobody may call\n"
_NOBODY_LINE = re.compile(r"^[ \t]*token[ \t]*=[ \t]*\[\s*\].*\n?", re.MULTILINE)
_ENTRY = re.compile(r"^[ \t]*\[\[[ \t]*token[ \t]*\]\]", re.MULTILINE)


def new_token() -> str:
    """A token of 32 random bytes, in letters that need no quoting."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """The entries. Raises ConfigError where the file is not there, or is no tokens file."""
    return parse_tokens(_read(path), str(path))


def add_token(path: Path, entry: TokenEntry) -> None:
    """Writes the entry behind the others; makes the file, for its owner alone, where there is none.

    Raises ConfigError where the name or credential is there already.
    """
    with _locked(path):
        text = _read(path) if path.exists() else _HEADER
        entries = parse_tokens(text, str(path)) if path.exists() else ()
        if entry.name in [other.name for other in entries]:
            raise ConfigError(
                f"{path} has a token {entry.name!r} already: give another name, or revoke that one first."
            )
        if not entries:
            text = _NOBODY_LINE.sub("", text)  # it does not go with entries
        text = f"{text.rstrip()}\n\n{_as_toml(entry)}"
        parse_tokens(text, str(path))
        _replace(path, text)


def revoke_token(path: Path, name: str) -> TokenEntry:
    """Takes the entry out and returns it. Raises ConfigError where there is none of that name."""
    with _locked(path):
        text = _read(path)
        entries = parse_tokens(text, str(path))
        names = [entry.name for entry in entries]
        if name not in names:
            raise ConfigError(f"{path} has no token {name!r}; it has {', '.join(names) or 'none'}.")
        index = names.index(name)
        rest = (*entries[:index], *entries[index + 1 :])
        text = _without(text, index)
        if not rest:
            text = f"{text.rstrip()}\n{_NOBODY}"
        if _entries_or_none(text) != rest:
            raise ConfigError(f"{path} is written in a way that cannot be changed safely: take {name} out by hand.")
        _replace(path, text)
    return entries[index]


def _without(text: str, index: int) -> str:
    """The text without its entry of that index: from its ``[[token]]`` to the next one, comments between included."""
    starts = [match.start() for match in _ENTRY.finditer(text)] + [len(text)]
    if index + 1 >= len(starts):
        return text
    return text[: starts[index]] + text[starts[index + 1] :]


def _entries_or_none(text: str) -> tuple[TokenEntry, ...] | None:
    try:
        return parse_tokens(text, "")
    except ConfigError:
        return None


def _as_toml(entry: TokenEntry) -> str:
    lines = ["[[token]]", f"name = {_quoted(entry.name)}"]
    if entry.sha256:
        lines.append(f"sha256 = {_quoted(entry.sha256.hex())}")
    else:
        lines.append(f"certificate = {_quoted(entry.certificate)}")
    lines.append(f"role = {_quoted(entry.role.word)}")
    if entry.expires is not None:
        lines.append(f"expires = {entry.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    if entry.models:
        lines.append(f"models = [{', '.join(map(_quoted, entry.models))}]")
    limits = entry.limits
    for name in ("max_requests_per_s", "max_items_per_s", "max_concurrent_requests"):
        if (value := getattr(limits, name)) is not None:
            lines.append(f"{name} = {value}")
    return "".join(f"{line}\n" for line in lines)


def _quoted(text: str) -> str:
    """JSON's strings are TOML's, but for the character that JSON does not escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no tokens file {path}; `rm-server token new` makes one.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The tokens file {path} cannot be read: {error}.") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One change at a time. The folder is locked: the file itself is replaced."""
    try:
        folder = os.open(path.absolute().parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"The folder of {path} cannot be opened: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError as error:
            raise ConfigError(f"The folder of {path} cannot be locked: {error.strerror}.") from error
        yield
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    """In one step, so that a server finds the old file or the new one. A file that was there keeps owner and mode:
    the server's user may be another one."""
    target = path.resolve()  # a link goes on pointing where it did
    try:
        before = target.stat() if target.exists() else None
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=".tokens-", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                os.fchmod(file.fileno(), before.st_mode & 0o7777 if before is not None else NEW_FILE_MODE)
                if before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ConfigError(f"The tokens file {path} cannot be written: {error.strerror}.") from error
