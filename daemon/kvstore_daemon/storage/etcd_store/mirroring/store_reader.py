"""What is asked of etcd to make a mirror, or to know whether one can go on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from kvstore_daemon.storage.etcd_store.layout import Names
from kvstore_daemon.storage.etcd_store.mirroring.revision_feed import key_value
from kvstore_daemon.storage.etcd_store.mirroring.revisions import KeyValue
from kvstore_daemon.storage.lmdb_store.store_file import new_epoch

CALL_SECONDS = 5.0
# of a million keys etcd needs seconds to find those of an old revision, and more where it is busy
_PAGE_SECONDS = 120.0
_STREAM_SECONDS = 3600.0
_PAGE_BYTES = 4 * 1024 * 1024
_FIRST_KEYS, _MOST_KEYS = 100, 2000
_STRETCH = 20

_EPOCH = re.compile(rb"[0-9a-f]{16}")


class StoreFound(NamedTuple):
    """A store as it was at one moment. ``epoch`` is None where nobody has begun one, and ``head`` where no
    daemon has committed anything; ``last`` is the last revision in which one did."""

    cluster: int
    revision: int
    epoch: KeyValue | None
    floor: int
    head: KeyValue | None
    last: int

    @property
    def base(self) -> int:
        """The revision after which the log begins."""
        began = 0 if self.epoch is None else self.epoch.mod_revision
        return max(min(self.floor, self.revision), began)

    @property
    def epoch_name(self) -> str:
        """The name of this history; empty where there is none, or another program put something else."""
        value = b"" if self.epoch is None else self.epoch.value
        return value.decode() if _EPOCH.fullmatch(value) else ""


def look(cluster: Cluster, names: Names) -> StoreFound:
    """Look at the store; raises EtcdError."""
    request = api.TxnRequest()
    for name in (names.epoch, names.floor, names.head):
        api.add_range(request.success, name)
    reply = cluster.ask(api.TXN, request, CALL_SECONDS)
    epoch, floor, head = (
        key_value(kvs[0]) if (kvs := response.response_range.kvs) else None for response in reply.responses
    )
    last = max(0 if kv is None else kv.mod_revision for kv in (epoch, floor, head))
    agreed = 0 if floor is None else layout.decode_floor(floor.value)
    return StoreFound(reply.header.cluster_id, reply.header.revision, epoch, agreed, head, last)


def refuse_inner(cluster: Cluster, prefix: bytes) -> None:
    """Raise ``bad_request`` where a store has been begun at a beginning of ``prefix``, up to a slash: of that
    one, the names of this would be a part. Raises EtcdError."""
    outer = [prefix[: slash.start()] for slash in re.finditer(b"/", prefix) if slash.start()]
    if not outer:
        return
    request = api.TxnRequest()
    for each in outer:
        api.add_range(request.success, Names(each).epoch)
    try:
        found = cluster.ask(api.TXN, request, CALL_SECONDS).responses
    except EtcdError as error:
        if error.kind == "auth":  # one who may not look there cannot be mistaken for it either
            return
        raise
    for each, response in zip(outer, found, strict=True):
        if response.response_range.kvs:
            raise KvError(
                "bad_request",
                f"{each.decode()} is the prefix of another store in this etcd, so {prefix.decode()} would be "
                "inside it; give --engine a prefix beside it, or better another etcd",
            )


def begin_epoch(cluster: Cluster, names: Names, found: StoreFound) -> None:
    """Begin a new history, unless another daemon has done so since ``found``; raises EtcdError."""
    request = api.TxnRequest()
    seen = 0 if found.epoch is None else found.epoch.mod_revision
    api.compare_revision(request.compare, names.epoch, seen)
    api.add_put(request.success, names.epoch, new_epoch().encode())
    cluster.call(api.TXN, request, CALL_SECONDS)


def head_at(cluster: Cluster, names: Names, revision: int) -> KeyValue | None:
    """``head`` as of a revision; raises EtcdError, ``compacted`` if that is forgotten."""
    request = api.RangeRequest(key=names.head, revision=revision)
    kvs = cluster.ask(api.RANGE, request, CALL_SECONDS).kvs
    return key_value(kvs[0]) if kvs else None


def oldest(cluster: Cluster, names: Names, forgotten: int, known: int) -> int:
    """The first revision that can still be read, which is above ``forgotten`` and not above ``known``; raises
    EtcdError. etcd tells it to a watch alone, and to that not always in time."""
    while known - forgotten > 1:
        middle = (forgotten + known) // 2
        try:
            head_at(cluster, names, middle)
        except EtcdError as error:
            if error.kind != "compacted":
                raise
            forgotten = middle
        else:
            known = middle
    return known


def records(cluster: Cluster, prefix: bytes, revision: int, *, keys_only: bool = False) -> Iterator[KeyValue]:
    """All keys that begin with ``prefix`` as of ``revision``, in order; raises EtcdError.

    etcd 3.7 streams them, and older ones are asked for one page after another.
    """
    request = api.RangeRequest(
        key=prefix, range_end=layout.range_end(prefix), revision=revision, keys_only=keys_only
    )
    try:
        for page in cluster.range_stream(request, _STREAM_SECONDS):
            yield from map(key_value, page.kvs)
    except EtcdError as error:
        if error.kind != "unimplemented":
            raise
        yield from _pages(cluster, request)


def _pages(cluster: Cluster, wanted: api.Message) -> Iterator[KeyValue]:
    """The records of a range, some at a time.

    To answer a page etcd counts all keys from there to the end of the range, so many pages of a large store
    would take it minutes. So it is asked for a long stretch of keys without values, and then for short
    ranges between two of them. Nor does it bound a page in bytes: of large values fewer are asked for.
    """
    stretch, count = api.RangeRequest(), _FIRST_KEYS
    stretch.CopyFrom(wanted)
    stretch.keys_only = True
    while True:
        stretch.limit = _STRETCH * count
        found = cluster.ask(api.RANGE, stretch, _PAGE_SECONDS)
        if wanted.keys_only:
            yield from map(key_value, found.kvs)
            count = _MOST_KEYS
        else:
            names = [kv.key for kv in found.kvs]
            while names:
                page = _between(cluster, wanted, names[0], names[min(count, len(names)) - 1])
                yield from map(key_value, page.kvs)
                del names[:count]
                mean = page.ByteSize() // max(1, len(page.kvs)) + 1
                count = max(1, min(_MOST_KEYS, _PAGE_BYTES // mean, 4 * count))
        if not found.more:
            return
        stretch.key = found.kvs[-1].key + b"\0"


def _between(cluster: Cluster, wanted: api.Message, first: bytes, last: bytes) -> api.Message:
    request = api.RangeRequest(key=first, range_end=last + b"\0", revision=wanted.revision)
    return cluster.ask(api.RANGE, request, _PAGE_SECONDS)
