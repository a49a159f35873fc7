"""etcd's API: its messages, as classes made from ``etcd.fds`` when this is imported, and its methods.

Generated modules would ask for the very versions of protobuf that they were generated for, and collide with
those of any other client of etcd in the process; descriptors in a pool of our own do neither. How they are
made, and of which etcd, is in ``tools/etcd_api.py`` and ``LICENSE.etcd``. Nothing here opens a connection.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

Message: TypeAlias = Any
"""One of the messages: their classes are made at run time, so no type checker knows their fields."""

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(Path(__file__).with_name("etcd.fds").read_bytes()).file:
    _pool.AddSerializedFile(_file.SerializeToString())


class Method(NamedTuple):
    """A method of etcd's: its path, and the classes of what it is sent and answers."""

    path: str
    request: Any
    reply: Any

    @property
    def is_of_data(self) -> bool:
        """Whether it reads or changes what is stored, so that a member needs a leader for it."""
        return self.path.startswith(("/etcdserverpb.KV/", "/etcdserverpb.Lease/", "/etcdserverpb.Watch/"))

    @property
    def name(self) -> str:
        """What it is called in a message for people."""
        return self.path.rpartition("/")[2]


def _message(name: str) -> Any:
    return GetMessageClass(_pool.FindMessageTypeByName(name))


def _method(service: str, name: str) -> Method:
    method = _pool.FindServiceByName(f"etcdserverpb.{service}").methods_by_name[name]
    return Method(
        f"/etcdserverpb.{service}/{name}",
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
    )


RANGE = _method("KV", "Range")
RANGE_STREAM = _method("KV", "RangeStream")
TXN = _method("KV", "Txn")
COMPACT = _method("KV", "Compact")
WATCH = _method("Watch", "Watch")
LEASE_GRANT = _method("Lease", "LeaseGrant")
LEASE_REVOKE = _method("Lease", "LeaseRevoke")
MEMBER_LIST = _method("Cluster", "MemberList")
STATUS = _method("Maintenance", "Status")
ALARM = _method("Maintenance", "Alarm")
AUTHENTICATE = _method("Auth", "Authenticate")

KeyValue = _message("mvccpb.KeyValue")
Event = _message("mvccpb.Event")
RangeRequest = RANGE.request
RangeResponse = RANGE.reply
PutRequest = _message("etcdserverpb.PutRequest")
DeleteRangeRequest = _message("etcdserverpb.DeleteRangeRequest")
Compare = _message("etcdserverpb.Compare")
RequestOp = _message("etcdserverpb.RequestOp")
TxnRequest = TXN.request
TxnResponse = TXN.reply
CompactionRequest = COMPACT.request
WatchRequest = WATCH.request
WatchResponse = WATCH.reply
LeaseGrantRequest = LEASE_GRANT.request
LeaseRevokeRequest = LEASE_REVOKE.request
MemberListRequest = MEMBER_LIST.request
StatusRequest = STATUS.request
AlarmRequest = ALARM.request
AuthenticateRequest = AUTHENTICATE.request


# Of the ways in which protobuf lets a Txn be built this is the fastest, 1 us for a put: no message is made
# that is copied afterwards, which takes twice to three times as long.


def add_put(ops: Any, key: bytes, value: bytes, lease: int = 0) -> None:
    """Add a put to a Txn's ``success`` or ``failure``."""
    put = ops.add().request_put
    put.key = key
    put.value = value
    if lease:
        put.lease = lease


def add_delete(ops: Any, key: bytes) -> None:
    """Add the deletion of one key."""
    ops.add().request_delete_range.key = key


def add_range(ops: Any, key: bytes, end: bytes = b"") -> None:
    """Add the reading of a key, or of the keys below ``end``, at the Txn's own revision.

    There is no way to ask for another revision: before 3.7.0 the members of a cluster could disagree on what
    a Txn with such a range has done, and then on all data (etcd's issue 18667).
    """
    read = ops.add().request_range
    read.key = key
    read.range_end = end


def compare_revision(compares: Any, key: bytes, revision: int) -> None:
    """Let a Txn succeed only if the key was last changed in ``revision``; 0: only if it does not exist."""
    compare = compares.add()
    compare.target = compare.MOD
    compare.key = key
    compare.mod_revision = revision


def compare_unchanged(compares: Any, key: bytes, end: bytes, since: int) -> None:
    """Let a Txn succeed only if no key from ``key`` up to ``end`` was put after revision ``since``.

    What was deleted since then leaves nothing behind that could be compared.
    """
    compare = compares.add()
    compare.target = compare.MOD
    compare.result = compare.LESS
    compare.key = key
    compare.range_end = end
    compare.mod_revision = since + 1
