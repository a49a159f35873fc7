"""The files that an address names: certificates and a password."""

from __future__ import annotations

import os
import ssl
import stat

import grpc

from kvstore_core.errors import KvError
from kvstore_core.process.files import reason
from kvstore_daemon.storage.etcd_store.connection.address import EtcdAddress

MAX_FILE_BYTES = 1 << 20


def read_tls(address: EtcdAddress) -> grpc.ChannelCredentials | None:
    """What gRPC needs for TLS, None for an address without; raises KvError saying what is wrong with a file.

    The files are read once: other certificates are used after a restart.
    """
    if address.ca is None:
        return None
    ca = _read("ca", address.ca)
    # gRPC would only say, at each call, that it cannot connect
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(address.ca)
    except ssl.SSLError as error:
        raise _unusable("ca", address.ca, "it holds no certificate in PEM") from error
    if address.cert is None or address.key is None:
        return grpc.ssl_channel_credentials(ca)
    cert, key = _read("cert", address.cert), _read("key", address.key, holds="a private key")
    try:
        context.load_cert_chain(address.cert, address.key, lambda: b"")
    except ssl.SSLError as error:
        why = f"with {address.cert} it is no pair of a certificate and its key, in PEM and without passphrase"
        raise _unusable("key", address.key, why) from error
    return grpc.ssl_channel_credentials(ca, key, cert)


def read_password(path: str) -> str:
    """The first line of the file; raises KvError where there is none, or where others can read it."""
    lines = _read("password-file", path, holds="a password").splitlines()
    if not lines or not lines[0]:
        raise _unusable("password-file", path, "its first line has no password")
    try:
        return lines[0].decode()
    except UnicodeDecodeError as error:
        raise _unusable("password-file", path, "it is not UTF-8") from error


def _read(parameter: str, path: str, *, holds: str | None = None) -> bytes:
    """What is in the file; raises KvError where it cannot be read, and where others can although it holds a
    secret, which ``holds`` names. A group may read a file that is another user's: without that we could not,
    and systemd gives a service its credentials so."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - what a message says is the path as it was given
            found = os.fstat(file.fileno())
            others, mode = (0o077, 600) if found.st_uid == os.geteuid() else (0o037, 640)
            if holds is not None and stat.S_ISREG(found.st_mode) and found.st_mode & others:
                raise KvError(
                    "not_allowed", f"others can read {path}, which holds {holds}: chmod {mode} {path}"
                )
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise _unusable(parameter, path, reason(error)) from error


def _unusable(parameter: str, path: str, why: str) -> KvError:
    return KvError("bad_request", f"{parameter}={path} of --engine cannot be used: {why}")
