"""Connections to the service, with TLS or without: ssl, which is slow to import, is only imported for it."""

from __future__ import annotations

import re
import socket
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, cast

from kvstore_cli.http_client.errors import WrongAddressError
from kvstore_cli.http_client.exchange import CUT_OFF
from kvstore_core.errors import KvError

if TYPE_CHECKING:
    import ssl

_HANDSHAKE_SECONDS = 2.0
"""After this long, check that the port speaks TLS at all: a server that takes the ClientHello for the start
of a request waits for the rest of it."""
_PROBE_SECONDS = 2.0

# X509_V_ERR_… of OpenSSL, which ssl passes on
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAMES = (62, 64)
_NAMES_SHOWN = 5


def connected(
    host: str,
    port: int | None,
    *,
    seconds: float,
    secure: bool,
    ca_file: str | None,
    checks_certificate: bool = True,
) -> socket.socket:
    """A connected socket. Raises OSError if it fails, ``not_allowed`` for a certificate that is not trusted,
    has expired or is for another name, and ``unavailable`` for a port without TLS: no other attempt
    would change those."""
    if secure:
        context = _context(ca_file) if checks_certificate else _unchecked_context()
        return _connect_with_tls(context, host, port or 443, seconds)
    return _connect(host, port or 80, seconds)


def _connect(host: str, port: int, seconds: float) -> socket.socket:
    # a name as bytes spares the codec of others, which is slow to import
    name: Any = host.encode() if host.isascii() else host
    sock = socket.create_connection((name, port), seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _context(ca_file: str | None) -> ssl.SSLContext:
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise KvError("bad_request", f"--ca-file {ca_file}: {reason(error)}") from error


def _unchecked_context() -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _connect_with_tls(context: ssl.SSLContext, host: str, port: int, seconds: float) -> socket.socket:
    import ssl

    try:
        return _handshake(context, host, port, min(seconds, _HANDSHAKE_SECONDS))
    except ssl.SSLCertVerificationError as error:
        raise _refused_certificate(context, host, port, error) from error
    except OSError as error:
        if not isinstance(error, ConnectionRefusedError) and _speaks_http(host, port):
            raise WrongAddressError(
                "unavailable", f"port {port} of {host} speaks HTTP without TLS; write http://"
            ) from error
        if not isinstance(error, TimeoutError) or seconds <= _HANDSHAKE_SECONDS:
            raise
    return _handshake(context, host, port, seconds - _HANDSHAKE_SECONDS)


def _handshake(context: ssl.SSLContext, host: str, port: int, seconds: float) -> socket.socket:
    with closing(_connect(host, port, seconds)) as sock:  # the wrapped one has taken it over, if there is one
        return context.wrap_socket(sock, server_hostname=host)


def _refused_certificate(
    context: ssl.SSLContext, host: str, port: int, error: ssl.SSLCertVerificationError
) -> KvError:
    what = f"the certificate of {host}"
    if error.verify_code == _EXPIRED:
        message = f"{what} has expired; renew it"
    elif error.verify_code == _NOT_YET_VALID:
        message = f"{what} is not valid yet; compare the clocks of both machines"
    elif error.verify_code in _OTHER_NAMES:
        names = _names_at(context, host, port)
        others = f", but for {', '.join(names)}" if names else ""
        message = f"{what} is not for that name{others}; write the address with a name that it is for"
    else:
        message = f"{what} is not trusted: {error.verify_message}; --ca-file names the certificates to trust"
    return KvError("not_allowed", message)


def _names_at(context: ssl.SSLContext, host: str, port: int) -> list[str]:
    """The names that a trusted certificate is for, the first few of them."""
    context.check_hostname = False
    with (
        suppress(OSError),
        socket.create_connection((host, port), _PROBE_SECONDS) as probe,
        context.wrap_socket(probe, server_hostname=host) as secured,
    ):
        found = secured.getpeercert() or {}
        names = cast("tuple[tuple[str, str], ...]", found.get("subjectAltName", ()))
        return [name for _, name in names[:_NAMES_SHOWN]]
    return []


def _speaks_http(host: str, port: int) -> bool:
    """Whether a plain request is answered there, with something other than 400."""
    with suppress(OSError), socket.create_connection((host, port), _PROBE_SECONDS) as probe:
        probe.sendall(b"HEAD /livez HTTP/1.0\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] ([0-9]{3})", probe.recv(64))
        return status is not None and status[1] != b"400"
    return False


def speaks_tls(host: str, port: int | None) -> bool:
    """Whether a TLS server answers there, whatever its certificate."""
    with (
        suppress(OSError),
        socket.create_connection((host, port or 80), _PROBE_SECONDS) as probe,
        _unchecked_context().wrap_socket(probe, server_hostname=host),
    ):
        return True
    return False


def reason(error: Exception) -> str:
    """What went wrong, in the system's own words where it has any."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    whole = sys.modules.get("http.client")  # what was not imported cannot have raised it
    if whole is not None and isinstance(error, whole.IncompleteRead):
        return CUT_OFF
    return str(error) or type(error).__name__
