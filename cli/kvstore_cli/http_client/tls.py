"""HTTPS, for services behind a proxy that speaks it."""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import suppress

from kvstore_cli.http_client.connection import http_client, reason
from kvstore_core.errors import KvError

_HANDSHAKE_SECONDS = 2.0
"""After so long it is looked whether TLS is spoken there at all: a server that takes the greeting for the
beginning of a request waits for more of it."""
_PROBE_SECONDS = 2.0


def connect_securely(
    host: str, port: int | None, *, seconds: float, ca_file: str | None
) -> http_client.HTTPConnection:
    """An open connection to a host whose certificate is trusted. Raises like ``connect``, and
    ``unavailable`` for a port that speaks HTTP without TLS."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise KvError("bad_request", f"--ca-file {ca_file}: {reason(error)}") from error
    try:
        return _shaken(context, host, port or 443, min(seconds, _HANDSHAKE_SECONDS))
    except ssl.SSLCertVerificationError as error:
        raise KvError(
            "not_allowed",
            f"the certificate of {host} is not trusted: {error.verify_message}; "
            "--ca-file names the certificates to trust",
        ) from error
    except OSError as error:
        if not isinstance(error, ConnectionRefusedError) and speaks_http(host, port or 443):
            raise KvError(
                "unavailable", f"port {port or 443} of {host} speaks HTTP without TLS; write http://"
            ) from error
        if not isinstance(error, TimeoutError) or seconds <= _HANDSHAKE_SECONDS:
            raise
    return _shaken(context, host, port or 443, seconds - _HANDSHAKE_SECONDS)


def _shaken(context: ssl.SSLContext, host: str, port: int, seconds: float) -> http_client.HTTPConnection:
    # http.client has a class for this, which is missing where ssl was hidden from it
    connection = http_client.HTTPConnection(host, port, timeout=seconds)
    try:
        connection.connect()
        connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
    except OSError:
        connection.close()
        raise
    return connection


def speaks_http(host: str, port: int) -> bool:
    """Whether something answers a plain request there, other than that it takes none such."""
    with suppress(OSError), socket.create_connection((host, port), _PROBE_SECONDS) as probe:
        probe.sendall(b"HEAD /livez HTTP/1.0\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] ([0-9]{3})", probe.recv(64))
        return status is not None and status[1] != b"400"
    return False


def speaks_tls(host: str, port: int | None) -> bool:
    """Whether a TLS server is there, whatever its certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        suppress(OSError),
        socket.create_connection((host, port or 80), _PROBE_SECONDS) as probe,
        context.wrap_socket(probe, server_hostname=host),
    ):
        return True
    return False
