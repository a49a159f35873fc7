"""The facade's client of the daemon, against a daemon that does what the test says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
import zmq
from gevent.pool import Group

from kvstore_core.access.principal import UNRESTRICTED
from kvstore_core.errors import KvError
from kvstore_core.wire import Limits, Request, decode_request, encode_error, encode_reply
from kvstore_http.backend.daemon_client import PAGES_UNDER_WAY, WRITES_UNDER_WAY, DaemonClient
from kvstore_http.backend.request_queue import MERGED_BYTES

EPOCH = "00112233445566ff"
TIMEOUT_MS = 600
PUT = {"content_type": "text/plain"}

Answer = Callable[[Request], list[bytes] | None]


class ScriptedDaemon:
    """A ROUTER socket served by a greenlet of the test's own loop. ``answer`` gives the frames of the
    reply, or None for none."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.requests: list[Request] = []
        self.answer: Answer = echo
        self.revision = 1
        self._open(None)

    def _open(self, endpoint: str | None) -> None:
        self._socket = self.context.socket(zmq.ROUTER)
        self._socket.linger = 0
        if endpoint is None:
            self._port = self._socket.bind_to_random_port("tcp://127.0.0.1")
            self.endpoint = f"tcp://127.0.0.1:{self._port}"
        else:
            self._socket.bind(endpoint)
        self._greenlet = gevent.spawn(self._serve)

    def _serve(self) -> None:
        while True:
            try:
                envelope = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                gevent.sleep(0.001)
                continue
            cut = envelope.index(b"")
            request = decode_request(envelope[cut + 1 :], Limits())
            self.requests.append(request)
            if (frames := self.answer(request)) is not None:
                self._socket.send_multipart([*envelope[: cut + 1], *frames])

    def stop(self) -> None:
        """Go away with all that was not answered."""
        self._greenlet.kill()
        self._socket.close()

    def start(self) -> None:
        """Come back at the same address."""
        gevent.sleep(0.01)
        self._open(self.endpoint)

    def close(self) -> None:
        self.stop()
        self.context.term()

    @property
    def asked(self) -> list[Request]:
        """What was asked but by the probe."""
        return [request for request in self.requests if request.ops[0]["op"] != "status"]


def echo(request: Request) -> list[bytes]:
    """A result for each op that says what it was."""
    results: list[dict[str, Any]] = []
    values: list[bytes] = []
    for op, value in zip(request.ops, request.values, strict=True):
        results.append({"op": op["op"], "key": op.get("key"), "got": len(value or b"")})
    return encode_reply(EPOCH, 1, results, values)


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    scripted = ScriptedDaemon()
    yield scripted
    scripted.close()


@pytest.fixture
def client(daemon: ScriptedDaemon) -> Iterator[DaemonClient]:
    context: zmq.Context[Any] = zmq.Context()
    made = DaemonClient(context, daemon.endpoint, TIMEOUT_MS)
    yield made
    made.close()
    context.term()


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of calls made in one moment, each in its greenlet; errors as results."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except KvError as error:
            return error

    group = Group()
    greenlets = [group.spawn(outcome, call) for call in calls]
    group.join()
    return [greenlet.get() for greenlet in greenlets]


def get(client: DaemonClient, key: str) -> Callable[[], dict[str, Any]]:
    return lambda: client.call({"op": "get", "key": key}, who=UNRESTRICTED)


def put(client: DaemonClient, key: str, value: bytes = b"v") -> Callable[[], dict[str, Any]]:
    return lambda: client.call({"op": "put", "key": key}, value, who=UNRESTRICTED)


def test_gets_of_one_moment_travel_together_and_each_caller_gets_its_own(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    keys = [f"k{number}" for number in range(50)]
    results = together(*(get(client, key) for key in keys))
    assert [result["key"] for result in results] == keys
    assert len(daemon.requests) == 1
    assert daemon.requests[0].client is None


def test_writes_of_one_moment_travel_together_under_a_number(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    results = together(*(put(client, f"k{number}", b"x" * number) for number in range(20)))
    assert [result["got"] for result in results] == list(range(20))
    assert [(len(request.ops), request.seq) for request in daemon.requests] == [(20, 1)]


def test_a_client_id_has_one_request_at_a_time_and_counts_up(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    for number in range(10):
        together(*(put(client, f"k{number}-{other}") for other in range(3)))
    by_client: dict[str | None, list[int]] = {}
    for request in daemon.requests:
        by_client.setdefault(request.client, []).append(request.seq)
    assert 1 <= len(by_client) <= WRITES_UNDER_WAY
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in by_client.values())


def test_batches_do_not_wait_for_each_other_but_writes_gather(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    def answer_once_all_are_there(request: Request) -> list[bytes] | None:
        return echo(request) if sum(each.atomic for each in daemon.requests) >= 20 else None

    daemon.answer = answer_once_all_are_there
    ops = [{"op": "put", "key": key, "size": 1} for key in "ab"]
    batches = [lambda: client.request(ops, [b"1", b"2"], atomic=True, who=UNRESTRICTED)] * 20
    together(*batches, *(put(client, f"k{number}") for number in range(30)))
    assert len({request.client for request in daemon.requests if request.atomic}) == 20
    assert len({request.client for request in daemon.requests if not request.atomic}) <= WRITES_UNDER_WAY


def test_a_merged_request_stays_below_its_size(daemon: ScriptedDaemon, client: DaemonClient) -> None:
    value = b"x" * (MERGED_BYTES // 3)
    together(*(put(client, f"k{number}", value) for number in range(7)))
    assert sum(len(request.ops) for request in daemon.requests) == 7
    assert all(sum(map(len, filter(None, request.values))) <= MERGED_BYTES for request in daemon.requests)


def test_an_op_that_is_malformed_fails_alone_and_is_never_sent(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    good, no_key, bad_ttl = together(
        put(client, "good"),
        put(client, ""),
        lambda: client.call({"op": "put", "key": "k", "ttl": -1}, b"", who=UNRESTRICTED),
    )
    assert good["key"] == "good"
    assert (no_key.code, bad_ttl.code) == ("invalid_key", "bad_request")
    assert [len(request.ops) for request in daemon.requests] == [1]


def test_a_refusal_that_one_caller_caused_does_not_reach_the_others(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    def refuse_large(request: Request) -> list[bytes]:
        if any(len(value or b"") > 5 for value in request.values):
            return encode_error(KvError("value_too_large", "too large", op=0))
        return echo(request)

    daemon.answer = refuse_large
    small, large, other = together(put(client, "small"), put(client, "large", b"x" * 6), put(client, "other"))
    assert (small["key"], other["key"]) == ("small", "other")
    assert large.code == "value_too_large"
    assert "op" not in large.details


def test_an_answer_too_large_only_because_it_is_shared_is_asked_for_alone(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    def room_for_one(request: Request) -> list[bytes]:
        full = {"error": KvError("reply_too_large", "no room").as_json()}
        return encode_reply(EPOCH, 1, [{"key": request.ops[0]["key"]}, *[full] * (len(request.ops) - 1)])

    daemon.answer = room_for_one
    results = together(*(get(client, key) for key in "abc"))
    assert [result["key"] for result in results] == ["a", "b", "c"]


def test_a_reply_that_does_not_fit_its_request_leaves_nobody_waiting(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    daemon.answer = lambda _: encode_reply(EPOCH, 1, [{"key": "one"}] * 2)
    assert [error.code for error in together(*(get(client, key) for key in "abc"))] == ["internal"] * 3


def test_an_op_error_reaches_its_caller_and_nobody_else(daemon: ScriptedDaemon, client: DaemonClient) -> None:
    missing = {"error": KvError("not_found", "no such key").as_json()}
    daemon.answer = lambda request: encode_reply(
        EPOCH, 1, [missing if op["key"] == "b" else {"key": op["key"]} for op in request.ops]
    )
    first, second, third = together(*(get(client, key) for key in "abc"))
    assert (first["key"], second.code, third["key"]) == ("a", "not_found", "c")


def test_nothing_is_sent_again_while_the_connection_lives(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    daemon.answer = lambda request: echo(request) if request.ops[0]["key"] == "other" else None
    slow = gevent.spawn(
        together,
        put(client, "k"),
        get(client, "k"),
        lambda: client.request([{"op": "history", "key": "k"}], who=UNRESTRICTED),
    )
    while not slow.ready():
        assert put(client, "other")()["key"] == "other"
    assert [error.code for error in slow.get()] == ["timed_out"] * 3
    assert sorted(op["op"] for request in daemon.asked for op in request.ops if op["key"] == "k") == [
        "get",
        "history",
        "put",
    ]


def test_what_a_lost_connection_took_with_it_is_sent_again_once_under_its_number(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    daemon.answer = lambda _: None
    waiting = gevent.spawn(
        together, put(client, "k"), lambda: client.request([{"op": "history", "key": "k"}], who=UNRESTRICTED)
    )
    while len(daemon.requests) < 2:
        gevent.sleep(0.001)
    daemon.stop()
    daemon.answer = echo
    daemon.start()
    write, read = waiting.get()
    assert (write["key"], read.results[0]["key"]) == ("k", "k")
    writes = [(request.client, request.seq, request.ops) for request in daemon.requests if request.client]
    assert len(writes) == 2
    assert writes[0] == writes[1]
    assert len(daemon.requests) == 4


def test_reads_that_are_not_gathered_are_admitted_as_they_are_answered(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    daemon.answer = lambda _: None
    page = {"op": "history", "key": "k"}
    waiting = gevent.spawn(
        together, *[lambda: client.request([page], who=UNRESTRICTED)] * (5 * PAGES_UNDER_WAY)
    )
    while not waiting.ready():
        gevent.sleep(0.001)
    assert len(daemon.asked) == PAGES_UNDER_WAY, "what was given up is not sent any more"


def test_the_table_of_identities_waits_for_nobodys_pages(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    daemon.answer = lambda request: echo(request) if request.ops[0]["op"] == "access" else None
    page = {"op": "list", "prefix": ""}
    waiting = gevent.spawn(together, *[lambda: client.call(page, who=UNRESTRICTED)] * (20 * PAGES_UNDER_WAY))
    while len(daemon.asked) < PAGES_UNDER_WAY:
        gevent.sleep(0.001)
    assert client.access()["op"] == "access"
    assert not waiting.ready()
    waiting.join()


def test_while_the_daemon_is_away_calls_fail_at_once_and_say_what_is_known(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    daemon.stop()
    read, write = together(get(client, "k"), put(client, "k"))
    assert (read.code, write.code) == ("unavailable", "unavailable")
    assert "outcome" not in read.details
    assert write.details["outcome"] == "unknown"
    assert client.is_away
    turns = itertools.count()
    counting = gevent.spawn(lambda: [gevent.sleep(0.001) for _ in turns])
    for error in together(get(client, "k"), put(client, "k")):
        assert error.code == "unavailable"
        assert "outcome" not in error.details, "it was never sent"
    counting.kill()
    assert next(turns) < 20, "the calls waited for something"
    daemon.start()


def test_the_daemon_is_found_again_without_a_call_that_waits_for_it(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    daemon.stop()
    together(get(client, "k"))
    daemon.start()
    with gevent.Timeout(20):
        while client.is_away:
            gevent.sleep(0.01)
    assert get(client, "k")()["key"] == "k"
    assert [request.ops[0]["key"] for request in daemon.asked] == ["k"], "what failed is not sent later"


def test_a_slow_answer_is_a_time_out_while_the_daemon_answers_others(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    daemon.answer = lambda request: None if request.ops[0]["op"] == "put" else echo(request)
    slow = gevent.spawn(lambda: together(put(client, "k"))[0])
    while not slow.ready():
        assert get(client, "other")()["key"] == "other"
    error = slow.get()
    assert (error.code, error.details["outcome"]) == ("timed_out", "unknown")
    assert not client.is_away


def test_a_keyed_request_is_numbered_by_its_key(daemon: ScriptedDaemon, client: DaemonClient) -> None:
    op = {"op": "incr", "key": "n"}
    client.request([op], idempotency_key="abc", who=UNRESTRICTED)
    client.request([op], idempotency_key="abc", who=UNRESTRICTED)
    assert [(request.client, request.seq) for request in daemon.requests] == [("http:abc", 1)] * 2


def test_a_request_of_its_own_is_not_merged_and_keeps_its_order(
    daemon: ScriptedDaemon, client: DaemonClient
) -> None:
    ops = [{"op": "put", "key": key, "size": 1} for key in "ab"] + [{"op": "get", "key": "a"}]
    results, _ = together(
        lambda: client.request(ops, [b"1", b"2"], atomic=True, who=UNRESTRICTED).results, put(client, "c")
    )
    assert [result["key"] for result in results] == ["a", "b", "a"]
    assert sorted((len(request.ops), request.atomic) for request in daemon.requests) == [
        (1, False),
        (3, True),
    ]


def test_epoch_and_head_follow_the_replies(daemon: ScriptedDaemon, client: DaemonClient) -> None:
    daemon.answer = lambda _: encode_reply(EPOCH, 41, [{"key": "k"}])
    get(client, "k")()
    client.note_position(EPOCH, 40)
    assert (client.epoch, client.head) == (EPOCH, 41)
    client.note_position("ffffffffffffffff", 3)
    assert (client.epoch, client.head) == ("ffffffffffffffff", 3)


def test_closing_the_link_ends_the_calls_that_wait(daemon: ScriptedDaemon) -> None:
    context: zmq.Context[Any] = zmq.Context()
    client = DaemonClient(context, daemon.endpoint, 60_000)
    daemon.answer = lambda _: None
    waiting = gevent.spawn(lambda: together(get(client, "k"), put(client, "k")))
    while len(daemon.requests) < 2:
        gevent.sleep(0.001)
    client.close()
    read, write = waiting.get()
    assert (read.code, write.details["outcome"]) == ("unavailable", "unknown")
    context.term()
