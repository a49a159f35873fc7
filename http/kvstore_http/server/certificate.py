"""The certificate and key of the service, read from their files again when those change."""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from kvstore_core.errors import KvError
from kvstore_core.process.files import reason
from kvstore_http.server.tls_socket import TlsSocket

log = logging.getLogger("kvstore.http")

LOOK_SECONDS = 60.0
"""How often the files are looked at."""

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Certificate:
    """The certificate in ``cert_file`` (PEM, its chain behind it), with its key in ``key_file`` or there too.

    ``context`` is for new connections; a connection keeps the one that it began with. Raises KvError, with a
    sentence that names the file, if they cannot be used.
    """

    def __init__(self, cert_file: str, key_file: str | None) -> None:
        self._files = (cert_file, key_file or cert_file)
        self._refused = ""
        self.ends_at = 0.0
        self._load()

    def refresh(self) -> None:
        """Take what is in the files, if they have changed. What cannot be used is reported in the log, and
        what is in use stays: between two writes the files do not match."""
        if self._look() == self._seen:
            self._refused = ""
            return
        try:
            self._load()
        except KvError as error:
            if error.message != self._refused:
                log.error("the certificate in use stays: %s", error.message)
            self._refused = error.message
        else:
            self._refused = ""
            ends = datetime.fromtimestamp(self.ends_at, UTC)
            log.info("took the new certificate in %s, valid until %s", self._files[0], ends.isoformat())

    @property
    def is_refused(self) -> bool:
        """Whether the files hold something that cannot be used."""
        return bool(self._refused)

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_state_of(file) for file in self._files]

    def _load(self) -> None:
        seen = self._look()
        cert, key = (_read(file) for file in self._files)
        found = _CERTIFICATE.search(cert)
        if found is None:
            raise KvError("bad_request", f"--tls-cert {self._files[0]} holds no certificate in PEM")
        if "PRIVATE KEY-----" not in key:
            raise KvError("bad_request", f"--tls-key {self._files[1]} holds no private key in PEM")
        context, ends_at = self._new_context(), not_after(ssl.PEM_cert_to_DER_cert(found[0]))
        now = time.time()
        if ends_at < now < self.ends_at:
            raise KvError("bad_request", f"the certificate in {self._files[0]} has expired")
        if ends_at < now:
            log.warning("the certificate in %s has expired: clients refuse it", self._files[0])
        self.context, self.ends_at, self._seen = context, ends_at, seen

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslsocket_class = TlsSocket
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        cert, key = self._files
        try:
            context.load_cert_chain(cert, key, _refuse_to_ask)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                message = f"the key in {key} is not that of the certificate in {cert}"
            else:
                message = f"OpenSSL takes no certificate from {cert} with the key in {key}: {_reason(error)}"
            raise KvError("bad_request", message) from error
        except OSError as error:
            raise KvError("bad_request", f"{cert} and {key} cannot be read: {reason(error)}") from error
        return context


def _refuse_to_ask() -> NoReturn:
    """Instead of OpenSSL's prompt on the terminal."""
    raise KvError(
        "bad_request",
        "the key of --tls-key is encrypted; write it out without a password: openssl pkey -in KEY -out FILE",
    )


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _state_of(file: str) -> tuple[int, int, int] | None:
    """What changes when the file is written or replaced; None while it cannot be looked at."""
    try:
        found = os.stat(file)  # noqa: PTH116 - once a minute for a name that is a text
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(file: str) -> str:
    try:
        return Path(file).read_text("latin-1")
    except OSError as error:
        raise KvError("bad_request", f"{file} cannot be read: {reason(error)}") from error


# ── X.509 ────────────────────────────────────────────────────────────────────────────────────────
# ssl decodes the certificate of a peer that it has verified, and no other. The end of one's own is five steps
# into it.

_UTC_TIME, _EXPLICIT_VERSION = 0x17, 0xA0


def not_after(der: bytes) -> float:
    """When a certificate (DER, RFC 5280 section 4.1) ends, in seconds since 1970. Raises KvError if it is
    none."""
    try:
        return _not_after(der)
    except (IndexError, ValueError) as error:
        raise KvError("bad_request", "the certificate is damaged") from error


def _not_after(der: bytes) -> float:
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)  # the part that is signed
    tag, _, after = _element(der, at)
    # version, serial number, algorithm, issuer; the version may be left out
    for _ in range(4 if tag == _EXPLICIT_VERSION else 3):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)  # the validity
    _, _, at = _element(der, at)
    tag, at, after = _element(der, at)
    text = der[at:after].decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%S%z").timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The element at an offset: its tag, where its content begins, and where it ends."""
    tag, length, at = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(der[at : at + size], "big"), at + size
    return tag, at, at + length
