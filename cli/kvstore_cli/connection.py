"""Connections to the service: http.client, loaded as cheaply as can be, and HTTPS where it is asked for."""

from __future__ import annotations

import sys

from kvstore_client.errors import KvError

# http.client takes an absent ssl for "no HTTPS" and is content with that. To import ssl takes a tenth
# of a whole `kvstore get`, for nothing unless the address is https: then _secure_connection does it.
_HIDE_SSL = "ssl" not in sys.modules
if _HIDE_SSL:
    sys.modules["ssl"] = None  # type: ignore[assignment]
try:
    import http.client as http_client
finally:
    if _HIDE_SSL:
        del sys.modules["ssl"]

__all__ = ["connect", "http_client", "reason"]


def connect(
    host: str, port: int | None, *, seconds: float, secure: bool, ca_file: str | None
) -> http_client.HTTPConnection:
    """An open connection. Raises OSError where there is none to be had, and ``not_allowed`` for a
    certificate that is not trusted: no other attempt would change that."""
    if secure:
        return _secure_connection(host, port, seconds, ca_file)
    connection = http_client.HTTPConnection(host, port, timeout=seconds)
    connection.connect()
    return connection


def _secure_connection(
    host: str, port: int | None, seconds: float, ca_file: str | None
) -> http_client.HTTPConnection:
    import ssl

    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise KvError("bad_request", f"--ca-file {ca_file}: {reason(error)}") from error
    # http.client has a class for this, which is missing where ssl was hidden from it
    connection = http_client.HTTPConnection(host, port or 443, timeout=seconds)
    connection.connect()
    try:
        connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise KvError(
            "not_allowed",
            f"the certificate of {host} is not trusted: {error.verify_message}; "
            "--ca-file names the certificates to trust",
        ) from error
    except OSError:
        connection.close()
        raise
    return connection


def reason(error: Exception) -> str:
    """What went wrong, in the system's own words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
