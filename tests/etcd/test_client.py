"""Calls to etcd: which member is asked, and what a failure says about a write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.address import parse_address
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError, WatchStream
from support.etcd import EtcdCluster, EtcdMember, etcd_version, fresh_prefix
from support.proxy import CuttingProxy
from support.servers import free_port, wait_until

PATIENCE = 60.0
"""Seconds that a call may take which has to succeed."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[EtcdCluster]:
    """Three members. A test that takes one away brings it back."""
    with EtcdCluster(tmp_path_factory.mktemp("three"), 3) as found:
        yield found


@pytest.fixture
def client(three: EtcdCluster) -> Iterator[Cluster]:
    """Of :func:`three`, with the endpoints in their order."""
    with Cluster(parse_address(three.address())) as found:
        yield found


@pytest.fixture
def alone(etcd: EtcdCluster) -> Iterator[Cluster]:
    """Of the member that all tests share."""
    with Cluster(parse_address(etcd.address())) as found:
        yield found


def txn(key: bytes, value: bytes = b"v", lease: int = 0) -> api.Message:
    request = api.TxnRequest()
    api.add_put(request.success, key, value, lease)
    return request


def put(client: Cluster, key: bytes = b"k", value: bytes = b"v", timeout: float = PATIENCE) -> int:
    """Put once; the revision."""
    revision: int = client.call(api.TXN, txn(key, value), timeout).header.revision
    return revision


def put_at_last(client: Cluster, key: bytes = b"k", timeout: float = PATIENCE) -> int:
    """Put as often as it takes."""

    def one() -> int:
        try:
            return put(client, key, timeout=timeout)
        except EtcdError as error:
            if not error.is_of_member:
                raise
            return 0

    return wait_until(one, timeout=PATIENCE, what="a put succeeds", every=0.05)


def get(client: Cluster, key: bytes = b"k", timeout: float = PATIENCE) -> bytes:
    """A linearizable read; empty for no such key."""
    reply = client.ask(api.RANGE, api.RangeRequest(key=key), timeout)
    return b"".join(pair.value for pair in reply.kvs)


def failure(call: Callable[[], object]) -> EtcdError:
    with pytest.raises(EtcdError) as caught:
        call()
    return caught.value


def first(three: EtcdCluster) -> EtcdMember:
    return three.members[0]


# ── members that fail ────────────────────────────────────────────────────────────────────────────


def test_a_killed_member_is_left_for_the_next_one(three: EtcdCluster, client: Cluster) -> None:
    put(client)
    assert client.endpoint == first(three).endpoint
    first(three).kill()
    try:
        put_at_last(client)
        assert client.endpoint in three.endpoints[1:]
        assert client.rotations >= 1
    finally:
        first(three).start()


def test_a_call_that_finds_nobody_was_not_sent(client: Cluster) -> None:
    address = parse_address(f"etcd://127.0.0.1:{free_port()},127.0.0.1:{free_port()}")
    with Cluster(address) as nobody:
        asked = []
        for _ in range(4):
            asked.append(nobody.endpoint)
            error = failure(lambda: put(nobody))
            assert error.kind == "not_sent"
            assert asked[-1] in str(error)
        assert asked == [*address.endpoints, *address.endpoints], "each in its turn, though all are put aside"


def test_a_name_that_does_not_exist_is_a_call_not_sent() -> None:
    with Cluster(parse_address("etcd://no-such-host.invalid")) as nobody:
        assert failure(lambda: put(nobody)).kind == "not_sent"


def waits_for_bytes(member: EtcdMember) -> bool:
    """Whether bytes lie in the socket of a stopped member."""
    port = f":{int(member.endpoint.rpartition(':')[2]):04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if local.endswith(port) and state == "01" and int(queues.partition(":")[2], 16):
            return True
    return False


def test_a_call_whose_time_is_over_says_why_there_was_no_connection() -> None:
    """What is asked again and again says in the end what the last call said, which may have had no time."""
    with Cluster(parse_address(f"etcd://127.0.0.1:{free_port()}")) as nobody:

        def failure(timeout: float) -> str:
            with pytest.raises(EtcdError) as caught:
                put(nobody, timeout=timeout)
            return str(caught.value)

        wait_until(lambda: "Connection refused" in failure(1.0))
        said = wait_until(lambda: found if "Deadline Exceeded" in (found := failure(0.0)) else None)
    assert "Connection refused" in said


def test_a_call_that_was_under_way_may_have_been_applied(three: EtcdCluster, client: Cluster) -> None:
    put(client)  # so that there is a connection
    errors: list[EtcdError] = []
    thread = threading.Thread(target=lambda: errors.append(failure(lambda: put(client))))
    first(three).pause()
    try:
        thread.start()
        wait_until(lambda: waits_for_bytes(first(three)), what="the request is at the member")
    finally:
        first(three).kill()
        first(three).start()
    thread.join()
    assert [error.kind for error in errors] == ["unknown"]


def test_a_member_that_hangs_costs_one_deadline(three: EtcdCluster, client: Cluster) -> None:
    put(client)
    with first(three).paused():
        error = failure(lambda: put(client, timeout=0.5))
        assert error.kind == "unknown"
        assert first(three).endpoint in str(error)
        assert client.endpoint != first(three).endpoint
        put_at_last(client, timeout=5)
    assert get(client) == b"v"


def test_what_may_be_repeated_is_asked_of_the_next_member(three: EtcdCluster, client: Cluster) -> None:
    put(client, value=b"asked for")
    follower = three.followers()[0]
    with Cluster(parse_address(three.address())._replace(endpoints=ordered(three, follower))) as other:
        assert get(other) == b"asked for"
        with follower.paused():
            # of which the first one gets a third
            assert get(other, timeout=10) == b"asked for"
            assert other.endpoint != follower.endpoint


def ordered(three: EtcdCluster, member: EtcdMember) -> tuple[str, ...]:
    """The endpoints, that of ``member`` first."""
    return (member.endpoint, *(found for found in three.endpoints if found != member.endpoint))


def test_asking_ends_when_its_time_is_over(three: EtcdCluster) -> None:
    with Cluster(parse_address(f"etcd://127.0.0.1:{free_port()}")) as nobody:
        # the last attempt may be cut off while it connects
        assert failure(lambda: nobody.ask(api.STATUS, api.StatusRequest(), 2)).kind in ("not_sent", "unknown")


def test_each_member_is_asked_and_one_that_hangs_is_put_aside(three: EtcdCluster, client: Cluster) -> None:
    found = client.each(api.STATUS, api.StatusRequest(), PATIENCE)
    assert list(found) == three.endpoints
    assert len({reply.header.member_id for reply in found.values()}) == 3
    with first(three).paused():
        found = client.each(api.STATUS, api.StatusRequest(), 1.0)
        error = found[first(three).endpoint]
        assert isinstance(error, EtcdError)
        assert error.kind == "unknown"
        assert client.endpoint != first(three).endpoint, "nobody needs to wait for it"


def test_threads_that_meet_the_same_trouble_turn_away_once(three: EtcdCluster, client: Cluster) -> None:
    put(client)
    together = threading.Barrier(8)
    errors: list[EtcdError] = []

    def call() -> None:
        together.wait()
        errors.append(failure(lambda: put(client, timeout=1.0)))

    threads = [threading.Thread(target=call) for _ in range(8)]
    with first(three).paused():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {error.kind for error in errors} == {"unknown"}
    assert client.rotations == 1


def test_a_member_without_a_leader_says_so_and_ends_streams(three: EtcdCluster) -> None:
    left = first(three)
    with Cluster(parse_address(f"etcd://{left.endpoint}")) as client, client.stream() as stream:
        watch(stream, b"k")
        for member in three.members[1:]:
            member.kill()
        try:
            # until it has noticed it holds calls, and may then still apply them
            wait_until(
                lambda: failure(lambda: put(client, timeout=0.5)).kind == "not_sent",
                timeout=PATIENCE,
                what="it knows that it has no leader",
            )
            assert "no leader" in str(failure(lambda: put(client)))
            assert "no leader" in str(failure(lambda: until_the_end(stream)))
            reply = client.call(api.STATUS, api.StatusRequest(), PATIENCE)
            assert reply.leader == 0, "of itself it can speak"
        finally:
            three.start()


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


def watch(stream: WatchStream, key: bytes, since: int = 0) -> None:
    """Watch a key, and wait until that holds."""
    request = api.WatchRequest()
    request.create_request.key = key
    request.create_request.start_revision = since
    stream.send(request)
    response = stream.next(PATIENCE)
    assert response is not None
    assert response.created


def until_the_end(stream: WatchStream) -> None:
    while stream.next(PATIENCE) is not None:
        pass


def test_a_stream_has_what_is_put(alone: Cluster) -> None:
    key = fresh_prefix().encode()
    with alone.stream() as stream:
        watch(stream, key)
        assert stream.next(0) is None
        revision = put(alone, key, b"new")
        response = stream.next(PATIENCE)
        assert response is not None
        assert [(event.kv.key, event.kv.value, event.kv.mod_revision) for event in response.events] == [
            (key, b"new", revision)
        ]
        assert stream.endpoint == alone.endpoint


def test_a_stream_that_is_silent_is_given_up(three: EtcdCluster, client: Cluster) -> None:
    with client.stream() as stream:
        watch(stream, b"k")
        with first(three).paused():
            progress = api.WatchRequest()
            progress.progress_request.SetInParent()
            stream.send(progress)
            assert stream.next(0.2) is None
            error = stream.give_up("no answer")
            assert error.kind == "unknown"
            assert first(three).endpoint in str(error)
            with client.stream() as other:
                assert other.endpoint != first(three).endpoint
                watch(other, b"k")


def test_a_connection_that_goes_nowhere_is_noticed_by_itself(etcd: EtcdCluster) -> None:
    """By pings: a router that forgot the connection answers nothing, and nothing is under way. gRPC's own
    defaults take more than a minute, and its documented option for it is without effect."""
    with CuttingProxy(etcd.endpoints[0]) as proxy:
        address = f"etcd://{proxy.endpoint.removeprefix('tcp://')}"
        with Cluster(parse_address(address)) as client, client.stream() as stream:
            watch(stream, b"k")
            proxy.swallow()
            with pytest.raises(EtcdError) as caught:
                assert stream.next(30), "silent for so long"
            assert caught.value.kind == "unknown"


def test_a_watch_from_before_the_compaction_says_from_where_there_is_something(alone: Cluster) -> None:
    key = fresh_prefix().encode()
    old = put(alone, key)
    compacted = put(alone, key)
    alone.call(api.COMPACT, api.CompactionRequest(revision=compacted, physical=True), PATIENCE)
    with alone.stream() as stream:
        error = failure(lambda: (watch(stream, key, since=old), until_the_end(stream)))
    assert (error.kind, error.compact_revision) == ("compacted", compacted)
    gone = api.RangeRequest(key=key, revision=old)
    assert failure(lambda: alone.call(api.RANGE, gone, PATIENCE)).kind == "compacted"
    future = api.RangeRequest(key=key, revision=compacted + 1000)
    assert failure(lambda: alone.call(api.RANGE, future, PATIENCE)).kind == "refused"


def test_closing_ends_streams_that_nobody_reads_and_calls_under_way(three: EtcdCluster) -> None:
    with Cluster(parse_address(three.address())) as client:
        stream = client.stream()
        watch(stream, b"k")
        for number in range(200):
            put(client, value=b"%d" % number)
        wait_until(stream._responses.full, what="it has read ahead")
        errors: list[EtcdError] = []
        thread = threading.Thread(target=lambda: errors.append(failure(lambda: put(client))))
        with first(three).paused():
            thread.start()
            wait_until(lambda: waits_for_bytes(first(three)), what="the request is at the member")
            client.close()
            thread.join()
        stream.close()
    assert [error.kind for error in errors] == ["unknown"]
    assert failure(lambda: put(client)).kind == "not_sent"
    assert failure(client.stream).kind == "not_sent"
    assert failure(lambda: client.ask(api.STATUS, api.StatusRequest(), PATIENCE)).kind == "not_sent"


def test_a_range_comes_in_pieces_where_the_server_can(alone: Cluster) -> None:
    prefix = fresh_prefix()
    for number in range(10):
        put(alone, f"{prefix}/{number}".encode())
    request = api.RangeRequest(key=f"{prefix}/".encode(), range_end=f"{prefix}0".encode())
    if etcd_version() < (3, 7):
        assert failure(lambda: list(alone.range_stream(request, PATIENCE))).kind == "unimplemented"
    else:
        pieces = list(alone.range_stream(request, PATIENCE))
        keys = [pair.key for piece in pieces for pair in piece.kvs]
        assert keys == [f"{prefix}/{number}".encode() for number in range(10)]
        assert pieces[-1].header.revision


@contextmanager
def three_seven(pieces: list[api.Message], breaks: bool) -> Iterator[str]:
    """A server of gRPC that sends pieces as etcd 3.7's API has them, which no distribution has yet."""

    def answer(request: api.Message, context: grpc.ServicerContext) -> Iterator[api.Message]:
        for piece in pieces:
            yield api.RANGE_STREAM.reply(range_response=piece)
        if breaks:
            context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed")

    _, service, name = api.RANGE_STREAM.path.split("/")
    method = grpc.unary_stream_rpc_method_handler(
        answer, api.RANGE_STREAM.request.FromString, api.RANGE_STREAM.reply.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: method})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"etcd://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("breaks", [False, True])
def test_a_range_in_pieces_ends_as_a_whole_or_fails(breaks: bool) -> None:
    pieces = [api.RangeResponse(kvs=[api.KeyValue(key=b"%d" % number)]) for number in range(3)]
    pieces[-1].header.revision = 7
    taken = []
    with three_seven(pieces, breaks) as address, Cluster(parse_address(address)) as client:
        stream = client.range_stream(api.RangeRequest(key=b"0", range_end=b"9"), PATIENCE)
        taken += [next(stream), next(stream), next(stream)]
        if breaks:
            assert failure(lambda: next(stream)).kind == "unknown"
        else:
            assert list(stream) == []
    assert taken == pieces
