"""etcd's messages and methods, as they are made at run time."""

from __future__ import annotations

import subprocess
import sys

from kvstore_daemon.storage.etcd_store.connection import api


def test_a_txn_has_the_bytes_that_etcd_reads() -> None:
    """Written out from etcd's .proto: a compare (2: MOD, 3: key), a put and a delete in ``success``."""
    txn = api.TxnRequest()
    api.compare_revision(txn.compare, b"k", 0)
    api.add_put(txn.success, b"k", b"v", lease=7)
    api.add_delete(txn.success, b"d")
    assert txn.SerializeToString() == (
        b"\x0a\x07\x10\x02\x1a\x01k\x30\x00"
        b"\x12\x0a\x12\x08\x0a\x01k\x12\x01v\x18\x07"
        b"\x12\x05\x1a\x03\x0a\x01d"
    )  # fmt: skip


def test_a_range_compare_is_below_the_next_revision() -> None:
    txn = api.TxnRequest()
    api.compare_unchanged(txn.compare, b"a", b"b", 41)
    (compare,) = txn.compare
    assert (compare.result, compare.target, compare.mod_revision) == (compare.LESS, compare.MOD, 42)
    assert (compare.key, compare.range_end) == (b"a", b"b")


def test_a_range_in_a_txn_names_no_revision() -> None:
    txn = api.TxnRequest()
    api.add_range(txn.failure, b"a", b"b")
    assert txn.failure[0].request_range == api.RangeRequest(key=b"a", range_end=b"b")


def test_each_method_has_its_path_and_its_messages() -> None:
    methods = {name: method for name, method in vars(api).items() if isinstance(method, api.Method)}
    for name, method in methods.items():
        assert method.name.lower() == name.replace("_", "").lower().replace("compaction", "compact")
        assert method.request.DESCRIPTOR.full_name.startswith("etcdserverpb.")
        assert method.reply.DESCRIPTOR.full_name.startswith("etcdserverpb.")
    assert api.RANGE_STREAM.path == "/etcdserverpb.KV/RangeStream"
    assert api.MEMBER_LIST.path == "/etcdserverpb.Cluster/MemberList"


def test_the_messages_are_in_no_pool_that_other_programs_use() -> None:
    """Another client of etcd in the same process has files and messages of the same names."""
    program = (
        "from kvstore_daemon.storage.etcd_store.connection import api\n"
        "from google.protobuf import descriptor_pool\n"
        "pool = descriptor_pool.Default()\n"
        "for name in ('etcdserverpb.TxnRequest', 'mvccpb.KeyValue'):\n"
        "    try: pool.FindMessageTypeByName(name)\n"
        "    except KeyError: continue\n"
        "    raise SystemExit(name)\n"
        "import sys\n"
        "assert 'grpc' not in sys.modules, 'messages need no connection'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
