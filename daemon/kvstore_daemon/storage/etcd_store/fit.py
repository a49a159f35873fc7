"""Whether options fit a store in etcd. Needs neither the packages that speak to it nor a connection, so that
``kvstore config check`` can say so too."""

from __future__ import annotations

from importlib.util import find_spec

from kvstore_core.distribution import how_to_install
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_ATOMIC_BYTES, MAX_CLUSTER_ATOMIC_OPS, MAX_VALUE_BYTES
from kvstore_daemon.storage.etcd_store.connection.address import EtcdAddress, parse_address


def checked_address(
    address: str,
    *,
    sync: str,
    evicts: bool,
    max_value_bytes: int,
    max_atomic_ops: int,
    max_atomic_bytes: int,
) -> EtcdAddress:
    """What ``--engine`` names; raises ``bad_request`` saying what is wrong with it, which limit a transaction
    of etcd could not hold, or which packages are missing."""
    found = parse_address(address)
    if sync != "always":
        raise KvError(
            "bad_request",
            f"--sync {sync} is for a store in a file; etcd has each commit on disk before it is "
            "acknowledged: leave the option out",
        )
    if evicts:
        raise KvError(
            "bad_request",
            "--evict-prefix is for a store in a file: with a cluster, each write would have to agree with "
            "all others on what is the oldest; leave the option out, and give records of a cache a TTL",
        )
    for option, given, most in (
        ("max-value-bytes", max_value_bytes, MAX_VALUE_BYTES),
        ("max-atomic-ops", max_atomic_ops, MAX_CLUSTER_ATOMIC_OPS),
        ("max-atomic-bytes", max_atomic_bytes, MAX_ATOMIC_BYTES),
    ):
        if given > most:
            raise KvError(
                "bad_request",
                f"--{option} {given} does not fit into a transaction of etcd: {most} is the most there",
            )
    missing = [
        name for module, name in (("grpc", "grpcio"), ("google", "protobuf")) if find_spec(module) is None
    ]
    if missing:
        raise KvError(
            "bad_request",
            f"--engine {found.redacted} needs {' and '.join(missing)}, which are not installed: "
            f"{how_to_install('etcd')}",
        )
    return found
