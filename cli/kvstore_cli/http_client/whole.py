"""http.client, for what is more than a request and its answer, without ssl, which is slow to import."""

from __future__ import annotations

import sys

from kvstore_cli.http_client.connection import connected

# http.client takes an absent ssl for "no HTTPS"
_HIDE_SSL = "ssl" not in sys.modules
if _HIDE_SSL:
    sys.modules["ssl"] = None  # type: ignore[assignment]
try:
    import http.client as http_client
finally:
    if _HIDE_SSL:
        del sys.modules["ssl"]

__all__ = ["connect", "http_client"]


def connect(
    host: str,
    port: int | None,
    *,
    seconds: float,
    secure: bool,
    ca_file: str | None,
    checks_certificate: bool = True,
) -> http_client.HTTPConnection:
    """An open connection; raises as :func:`connected` does."""
    connection = http_client.HTTPConnection(host, port or (443 if secure else 80), timeout=seconds)
    connection.auto_open = 0  # http.client would reconnect by itself, and without TLS
    connection.sock = connected(
        host, port, seconds=seconds, secure=secure, ca_file=ca_file, checks_certificate=checks_certificate
    )
    return connection
