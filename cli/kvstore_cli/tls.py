"""HTTPS, for services behind a proxy that speaks it."""

from __future__ import annotations

import ssl

from kvstore_cli.connection import http_client, reason
from kvstore_client.errors import KvError


def connect_securely(
    host: str, port: int | None, *, seconds: float, ca_file: str | None
) -> http_client.HTTPConnection:
    """An open connection to a host whose certificate is trusted. Raises like ``connect``."""
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
