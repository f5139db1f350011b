"""The files that decide who is let in, read again when they change: the token, the tokens file, certificates."""

from __future__ import annotations

from pathlib import Path

from rm_server.api.access import Access
from rm_server.api.certificates import Certificates
from rm_server.api.reloading import WatchedFiles
from rm_server.api.tokens import parse_tokens
from rm_server.config import ConfigError, ServeSettings
from rm_server.metrics import Metrics


def watched_credentials(
    settings: ServeSettings, access: Access, certificates: Certificates, metrics: Metrics
) -> list[WatchedFiles]:
    """What is read again when it changes; the tokens are read for the first time here."""
    watched = []
    if (token_file := settings.token_file) is not None:

        def load_token() -> None:
            access.use_token(_read_token(token_file))

        watched.append(WatchedFiles("token", (token_file,), load_token, metrics))
        load_token()
    if (path := settings.auth.tokens) is not None:

        def load_tokens() -> None:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"auth.tokens: {path} cannot be read: {error}.") from error
            entries = parse_tokens(text, str(path))
            for entry in entries:
                if entry.certificate and settings.tls.client_ca is None:
                    raise ConfigError(
                        f"{path}: {entry.name} shows a certificate; only with tls.client_ca are they seen."
                    )
            access.use(entries)

        watched.append(WatchedFiles("tokens", (path,), load_tokens, metrics))
        load_tokens()
    if settings.tls.is_on:
        watched.append(WatchedFiles("tls", certificates.paths, certificates.reload, metrics))
    return watched


def _read_token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"token_file: {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise ConfigError(f"token_file: {file} is no text, so it has no token.") from None
    if not token:
        raise ConfigError(f"token_file: {file} is empty.")
    return token
