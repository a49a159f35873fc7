"""Connections to the service: http.client, loaded as cheaply as can be, and HTTPS where it is asked for."""

from __future__ import annotations

import sys

# http.client takes an absent ssl for "no HTTPS" and is content with that. To import ssl takes a tenth
# of a whole `kvstore get`, for nothing unless the address is https: then the module ``tls`` does it.
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
        from kvstore_cli.http_client.tls import connect_securely

        connection = connect_securely(host, port, seconds=seconds, ca_file=ca_file)
    else:
        connection = http_client.HTTPConnection(host, port, timeout=seconds)
        connection.connect()
    connection.auto_open = 0  # http.client would connect anew by itself, and without TLS
    return connection


def reason(error: Exception) -> str:
    """What went wrong, in the system's own words where it has any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, http_client.IncompleteRead):
        return "it was cut off in the middle"
    return str(error) or type(error).__name__
