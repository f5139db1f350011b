"""The TLS files, for gRPC and HTTP alike, and how new ones come into use while connections go on."""

from __future__ import annotations

import ssl
from functools import partial
from pathlib import Path

import grpc

from rm_server.config import ConfigError, TlsSettings


class Certificates:
    """What new connections are greeted with. ``reload`` reads the files again; those that are open keep what they had.

    Without TLS in the settings there are neither credentials nor a context.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self.paths = tuple(path for path in (settings.cert, settings.key, settings.client_ca) if path is not None)
        self._context = self._new_context() if settings.is_on else None
        self._next_for_grpc: grpc.ServerCertificateConfiguration | None = None

    def reload(self) -> None:
        """Raises ConfigError where the files cannot be used; what was in use stays so then."""
        context = self._new_context()  # says what is wrong with the files; gRPC would only go on silently
        configuration = self._grpc_configuration()
        self._context, self._next_for_grpc = context, configuration

    def grpc_credentials(self) -> grpc.ServerCredentials | None:
        """For one port: gRPC asks before each handshake whether there are new files."""
        if self._context is None:
            return None
        return grpc.dynamic_ssl_server_credentials(
            self._grpc_configuration(), self._take_next, self._settings.client_ca is not None
        )

    def http_context(self) -> ssl.SSLContext | None:
        """For the listener. Each handshake goes on with the newest context: loading into the one that is in use could
        add an authority of clients, and could not take one away."""
        if self._context is None:
            return None
        listening = self._new_context()
        # Called for every ClientHello, with or without a server's name in it.
        listening.sni_callback = self._use_newest
        return listening

    def _use_newest(self, connection: ssl.SSLObject, server_name: str | None, context: ssl.SSLContext) -> None:
        assert self._context is not None
        connection.context = self._context

    def _take_next(self) -> grpc.ServerCertificateConfiguration | None:
        """None: as before. Runs on a thread of gRPC's."""
        configuration, self._next_for_grpc = self._next_for_grpc, None
        return configuration

    def _grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        settings = self._settings
        return grpc.ssl_server_certificate_configuration(
            ((_pem("tls.key", settings.key), _pem("tls.cert", settings.cert)),),
            root_certificates=_pem("tls.client_ca", settings.client_ca) if settings.client_ca else None,
        )

    def _new_context(self) -> ssl.SSLContext:
        cert, key, client_ca = self._settings.cert, self._settings.key, self._settings.client_ca
        assert cert is not None
        for name, path in (("tls.cert", cert), ("tls.key", key), ("tls.client_ca", client_ca)):
            if path is not None:
                _pem(name, path)  # says which of them cannot be read
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(cert, key, password=partial(_no_passphrase, key or cert))
            if client_ca is not None:
                context.load_verify_locations(client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
                # gRPC's address takes an authority that does not say what its key is for; Python 3.13 would not.
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
                # No session is resumed: whoever came back with one would be let in though its authority is gone.
                # Those of TLS 1.2 cannot be turned off here.
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.num_tickets = 0
        except OSError as error:
            names = ", ".join(map(str, self.paths))
            raise ConfigError(f"The certificates of [tls] ({names}) cannot be used: {error}.") from error
        return context


def _no_passphrase(path: Path) -> str:
    """Else OpenSSL would ask for it at the terminal, and everything would wait for an answer."""
    raise ConfigError(
        f"tls.key: {path} is encrypted, and nobody is asked for its passphrase. Decrypt it: openssl pkey -in {path}"
    )


def _pem(name: str, path: Path | None) -> bytes:
    assert path is not None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {path} cannot be read: {error.strerror}.") from error
