"""The address of a cluster of etcd, as ``--engine`` has it.

    etcd://h1:2379,h2:2379,h3:2379/prefix?ca=…&cert=…&key=…

Reading it opens neither a connection nor a file.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from kvstore_core.addresses import is_loopback
from kvstore_core.errors import KvError
from kvstore_core.units import parse_size

SCHEME = "etcd://"
DEFAULT_PORT = 2379
DEFAULT_PREFIX = b"/kvstore"
MAX_PREFIX_BYTES = 256
MIN_QUOTA_BYTES = 1024**2
PARAMETERS = ("ca", "cert", "key", "user", "password-file", "server-name", "quota")
OWN_NAMES = frozenset({"key", "reply", "writer"})
"""What a store has below its prefix, with names of others' choice behind it: another store could not be told
from them there, and either would destroy the other."""

EXAMPLE = "etcd://host1:2379,host2:2379,host3:2379/prefix?ca=FILE&cert=FILE&key=FILE"


class EtcdAddress(NamedTuple):
    """Where a store in etcd is, and how one gets in.

    ``endpoints`` are ``host:port``, at least one and each once, IPv6 in brackets. All keys of the store begin
    with ``prefix`` and a slash. The others are None where they were not given: files of PEM, with ``ca`` for
    TLS, and ``cert`` and ``key``, always together, for a certificate of our own; ``user``, always with the
    file of the password; ``server_name``, which the members' certificates have instead of their hosts; and
    ``quota``, the bytes of ``--quota-backend-bytes`` for members that do not say it themselves.
    """

    endpoints: tuple[str, ...]
    prefix: bytes = DEFAULT_PREFIX
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password_file: str | None = None
    server_name: str | None = None
    quota: int | None = None

    @property
    def redacted(self) -> str:
        """The address for logs and ``status``: where, but not as whom."""
        return f"{SCHEME}{','.join(self.endpoints)}{self.prefix.decode(errors='replace')}"


def parse_address(text: str) -> EtcdAddress:
    """Read an address; raises ``bad_request`` saying what is wrong with it.

    The port is 2379 and the prefix ``/kvstore`` where there is none.
    """
    if not text.startswith(SCHEME):
        raise _wrong(f"it does not begin with {SCHEME}")
    rest, _, query = text.removeprefix(SCHEME).partition("?")
    hosts, slash, path = rest.partition("/")
    if "@" in hosts:
        # not quoted: there may be a password in front of it
        raise _wrong("it names a user before the hosts; write ?user=NAME&password-file=FILE behind them")
    endpoints = tuple(_endpoint(host) for host in hosts.split(","))
    if len({*endpoints}) < len(endpoints):
        raise _wrong(f"it names an endpoint twice in {hosts!r}")
    given = _parameters(query)
    _check_pairs(given)
    if "user" in given and "ca" not in given:
        _refuse_clear_password(endpoints)
    quota = _quota(given.pop("quota", None))
    return EtcdAddress(endpoints, _prefix(slash + path), quota=quota, **given)


def _wrong(why: str) -> KvError:
    return KvError("bad_request", f"the address of --engine is not valid: {why}; it looks like {EXAMPLE}")


def _endpoint(text: str) -> str:
    match = re.fullmatch(r"(\[[^\[\]]+\]|[\w.-]+)(?::([0-9]{1,5}))?", text, re.ASCII)
    if match is None:
        raise _wrong(f"{text!r} is not HOST or HOST:PORT" if text else "the name of a host is missing")
    host, port = match[1], int(match[2] or DEFAULT_PORT)
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except ValueError as error:
            raise _wrong(f"{host} is not an IPv6 address") from error
    if not 0 < port < 65536:
        raise _wrong(f"the port of {text!r} is not from 1 to 65535")
    return f"{host.lower()}:{port}"


def _prefix(path: str) -> bytes:
    prefix = unquote_to_bytes(path).rstrip(b"/") or DEFAULT_PREFIX
    if len(prefix) > MAX_PREFIX_BYTES:
        raise _wrong(f"the prefix has more than {MAX_PREFIX_BYTES} bytes")
    if not prefix.isascii() or not prefix.decode().isprintable() or b"//" in prefix or b"#" in prefix:
        raise _wrong(f"the prefix {path!r} has other than printable ASCII, a '#' or '//' in it")
    inner = {segment.decode() for segment in prefix.split(b"/")[2:]}
    if taken := inner & OWN_NAMES:
        name = min(taken)
        raise _wrong(
            f"the prefix {path!r} has {name!r} in it, which a store at the beginning of it would take for a "
            "name of its own"
        )
    return prefix


def _quota(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        quota = parse_size(text)
    except ValueError as error:
        raise _wrong(f"the parameter 'quota': {error}") from error
    if quota < MIN_QUOTA_BYTES:
        raise _wrong(f"the quota {text!r} is less than 1 MiB; write it as for example 8GiB")
    return quota


def _refuse_clear_password(endpoints: tuple[str, ...]) -> None:
    for endpoint in endpoints:
        host = endpoint.rpartition(":")[0].strip("[]")
        if not is_loopback(host):
            raise _wrong(f"without 'ca' the password would go to {host} in clear; give 'ca' with 'user'")


def _parameters(query: str) -> dict[str, str]:
    """By the names of EtcdAddress. Values are not quoted in an error: somebody may write a password there."""
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in PARAMETERS:
            raise _wrong(f"there is no parameter {name!r}, only {', '.join(PARAMETERS)}")
        if not value:
            raise _wrong(f"the parameter {name!r} is empty")
        field = name.replace("-", "_")
        if field in given:
            raise _wrong(f"the parameter {name!r} is there twice")
        given[field] = value
    return given


def _check_pairs(given: dict[str, str]) -> None:
    for name, needed in (
        ("cert", "key"),
        ("key", "cert"),
        ("user", "password_file"),
        ("password_file", "user"),
        ("cert", "ca"),
        ("server_name", "ca"),
    ):
        if name in given and needed not in given:
            raise _wrong(
                f"the parameter {name.replace('_', '-')!r} needs {needed.replace('_', '-')!r} beside it"
            )
