"""The daemon with access on, at its real sockets: who may what, and the operations on identities."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest
import zmq

from kvstore_core.access import changes
from kvstore_core.access.identities import AccessTable
from kvstore_core.access.tokens import new_token
from kvstore_core.operations import STATUS_FOR_ALL
from kvstore_daemon.access.access_files import edit, read_table
from kvstore_daemon.requests.reads import _cursor
from support.protected import Protected
from support.servers import Daemon, Facade, StartDaemon, wait_until
from support.session import Session
from support.wire import Peer, get, pack, put, unpack


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A name for what this test alone makes."""
    return f"t{crc32(request.node.nodeid.encode())}"


def names(protected: Protected) -> set[str]:
    (page,) = protected.root.ask({"op": "identities"})
    return {row["name"] for row in page["identities"]}


# ── checks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("atomic", [False, True])
def test_a_request_with_one_forbidden_op_changes_nothing_and_uses_no_number(
    protected_daemon: Protected, unique: str, at: int, atomic: bool
) -> None:
    name = f"{unique}-{at}-{atomic}"
    peer = protected_daemon.peer(protected_daemon.keys(name, f"rw:{name}/"))
    before = protected_daemon.root.ask({"op": "status"})[0]["revision"]
    ops = [put(f"{name}/{number}", b"x") for number in range(3)]
    bad = [*ops[:at], put(f"{name}x", b"x"), *ops[at:]]
    error = peer.refusal(*bad, atomic=atomic, client="c", seq=1)
    assert (error["code"], error["op"], error["needs"]) == ("not_allowed", at, "write")
    assert error["grants"] == [f"rw:{name}/"]
    for key in (f"{name}/0", f"{name}/1", f"{name}/2", f"{name}x"):
        assert protected_daemon.root.ask(get(key))[0]["error"]["code"] == "not_found"
    assert protected_daemon.root.ask({"op": "status"})[0]["revision"] == before
    assert [result["version"] for result in peer.ask(*ops, atomic=atomic, client="c", seq=1)] == [1, 1, 1]


def test_what_a_request_takes_from_its_sender_holds_for_the_rest_of_it(
    protected_daemon: Protected, unique: str
) -> None:
    """And what it has done keeps its result."""
    protected_daemon.root.ask(put(f"{unique}/k", b"secret"))
    peer = protected_daemon.peer(protected_daemon.keys(unique, "admin", f"rw:{unique}/"))
    written, first, changed, second, made = peer.ask(
        put(f"{unique}/own"),
        get(f"{unique}/k"),
        {"op": "identity_put", "name": unique, "grants": []},
        get(f"{unique}/k"),
        {"op": "identity_put", "name": f"{unique}-2", "grants": ["admin"]},
    )
    assert (written["version"], changed["grants"]) == (1, [])
    assert [result["error"]["code"] for result in (first, second, made)] == ["not_allowed"] * 3
    assert f"{unique}-2" not in names(protected_daemon)


def test_a_request_that_waits_for_its_sender_is_done_with_the_grants_of_then(
    protected_daemon: Protected, unique: str
) -> None:
    """It waits because the sender does not read a reply."""
    root, size = protected_daemon.root, 1_000_000
    root.ask(put(f"{unique}/large", bytes(size)))
    keys = protected_daemon.keys(unique, f"all:{unique}/", f"read:{unique}-s/", "admin")
    made = {"op": "identity_put", "name": f"{unique}-2", "grants": ["admin"]}
    long = [get(f"{unique}/none")] * 9_990 + [get(f"{unique}-s/k"), made]

    def set_aside() -> Peer | None:
        """A peer with the long request begun, and the reply to one that came after it unread."""
        socket = protected_daemon.socket(zmq.DEALER, keys)
        socket.rcvhwm = 1
        socket.connect(protected_daemon.requests)
        for ops in (long, [get(f"{unique}/large")] * 45):
            socket.send_multipart([b"", *pack(*ops)])

        def waiting() -> int | None:
            (status,) = root.ask({"op": "status"})
            return status["pending"] if status["untaken_bytes"] > 10 * size else None

        if wait_until(waiting, what="the reply waits for its reader") > 1:
            return Peer(socket)
        # the long one was the faster one: only the status was pending
        socket.close()
        wait_until(lambda: root.ask({"op": "status"})[0]["untaken_bytes"] == 0)
        protected_daemon.change("identity_delete", f"{unique}-2")
        return None

    peer = wait_until(set_aside, what="a long request is set aside")
    protected_daemon.change("identity_put", unique, grants=[f"all:{unique}/"])
    root.ask(put(f"{unique}-s/k", b"written later"))
    replies = [unpack(peer.socket.recv_multipart()[1:]) for _ in range(2)]
    assert [reply["error"]["code"] for reply in replies if "error" in reply] == ["not_allowed"]
    assert f"{unique}-2" not in names(protected_daemon)


def test_what_is_not_granted_is_answered_the_same_whether_it_is_there_or_not(
    protected_daemon: Protected, unique: str
) -> None:
    root = protected_daemon.root
    root.ask(put(f"{unique}/there", b"x"), put(f"{unique}/gone", b"x"))
    root.ask({"op": "delete", "key": f"{unique}/gone"})
    for grants in ([], ["write:other/"], ["ro:other/"]):
        peer = protected_daemon.peer(protected_daemon.keys(unique, *grants))
        for op in ("get", "history", "incr", "persist", "delete"):
            errors = []
            for key in ("there", "gone", "miss"):
                error = peer.refusal({"op": op, "key": f"{unique}/{key}"})
                errors.append({**error, "message": error["message"].replace(key, "K"), "on": ""})
            assert errors[0] == errors[1] == errors[2]
            assert errors[0]["code"] == "not_allowed"


def test_numbers_of_another_identity_are_never_met(protected_daemon: Protected, unique: str) -> None:
    one, other = (
        protected_daemon.peer(protected_daemon.keys(f"{unique}{side}", f"rw:{unique}/")) for side in "ab"
    )
    op = {"op": "incr", "key": f"{unique}/n"}
    assert one.ask(op, client="c", seq=5)[0]["value"] == 1
    assert other.ask(op, client="c", seq=5)[0]["value"] == 2  # the same bytes
    assert one.ask(op, client="c", seq=5)[0]["value"] == 1
    other.ask(op, client="c", seq=99)
    assert one.ask(op, client="c", seq=6)[0]["value"] == 4
    for client in ("http:x", "facade:x"):
        assert one.refusal(op, client=client, seq=1)["code"] == "not_allowed"


def test_the_author_of_a_change_is_the_identity(protected_daemon: Protected, unique: str) -> None:
    peer = protected_daemon.peer(protected_daemon.keys(unique, f"rw:{unique}/"))
    peer.ask(put(f"{unique}/k", b"x"))
    assert peer.ask(get(f"{unique}/k"))[0]["author"] == unique
    assert peer.refusal(put(f"{unique}/k", b"y"), author="zoe")["code"] == "not_allowed"
    protected_daemon.root.ask(put(f"{unique}/k", b"y"), author="zoe")
    assert peer.ask(get(f"{unique}/k"))[0]["author"] == "zoe"


def test_the_status_without_monitor_is_what_a_client_has_to_know(
    protected_daemon: Protected, unique: str
) -> None:
    plain = protected_daemon.peer(protected_daemon.keys(unique))
    assert set(plain.ask({"op": "status"})[0]) == set(STATUS_FOR_ALL)
    monitor = protected_daemon.peer(protected_daemon.keys(f"{unique}m", "monitor"))
    status = monitor.ask({"op": "status"})[0]
    assert status["access"]["problem"] is None
    assert status["access"]["identities"] == len(names(protected_daemon))


def test_the_digest_of_all_is_told_to_those_who_may_read_and_list_all(
    protected_daemon: Protected, unique: str
) -> None:
    """Who hears it before and after a change can try out which value was written."""
    of_all = protected_daemon.root.ask({"op": "digest"})[0]["digest"]
    for verb, is_told in (("read", False), ("list", False), ("ro", True)):
        keys = protected_daemon.keys(f"{unique}-{verb}", "monitor", f"{verb}:*")
        peer = protected_daemon.peer(keys)
        assert peer.ask({"op": "status"})[0]["digest"] == (of_all if is_told else None)
        if is_told:
            assert peer.ask({"op": "digest"})[0]["digest"] == of_all
        else:
            assert peer.refusal({"op": "digest"})["code"] == "not_allowed"
    part = protected_daemon.peer(protected_daemon.keys(unique, f"ro:{unique}/"))
    assert part.ask({"op": "digest", "prefix": f"{unique}/"})[0]["count"] == 0
    assert part.refusal({"op": "digest"})["code"] == "not_allowed"


def test_whoami_tells_what_one_has(protected_daemon: Protected, unique: str) -> None:
    end = time.time_ns() // 1_000_000 + 3_600_000
    keys = protected_daemon.keys(unique, "ro:a/", "monitor", credential_expires_at=end)
    assert protected_daemon.peer(keys).ask({"op": "whoami"})[0] == {
        "access": True,
        "name": unique,
        "grants": ["ro:a/", "monitor"],
        "kind": "key",
        "credential": keys.public_key,
        "expires_at": end,
    }


# ── ranges ───────────────────────────────────────────────────────────────────────────────────────


def test_no_cursor_leads_out_of_what_is_granted(protected_daemon: Protected, unique: str) -> None:
    root, inside, outside = protected_daemon.root, f"{unique}/in/", f"{unique}/out/"
    root.ask(*[put(f"{folder}{number}", b"x") for folder in (inside, outside) for number in range(3)])
    peer = protected_daemon.peer(protected_daemon.keys(unique, f"ro:{inside}"))
    for folder in ("", outside, f"{unique}/", "\U0010ffff"):
        lists = {"op": "list", "prefix": inside, "cursor": _cursor(f"{folder}k".encode())}
        assert all(item["key"].startswith(inside) for item in peer.ask(lists)[0]["items"])
    first, second = (
        root.ask({"op": "history", "key": f"{folder}1", "limit": 1})[0]["events"][0]
        for folder in (inside, outside)
    )
    for event in (first, second):
        past = {"op": "history", "key": f"{inside}1", "cursor": f"{event['revision']}.{event['index']}"}
        found = peer.ask(past)[0]
        assert all(event["key"] == f"{inside}1" for event in found.get("events", ()))
    recent = {"op": "history", "prefix": inside}
    for cursor in ({}, {"cursor": f"{second['revision']}.{second['index']}"}, {"before": 2**62}):
        assert all(event["key"].startswith(inside) for event in peer.ask({**recent, **cursor})[0]["events"])
    events = peer.ask({"op": "events", "since": first["revision"] - 2, "prefixes": [inside]})[0]["events"]
    assert {event["key"] for event in events} == {f"{inside}{number}" for number in range(3)}
    for op in (
        {"op": "history", "prefix": f"{unique}/"},
        {"op": "history", "prefix": outside, "values": False},
        {"op": "list", "prefix": f"{unique}/", "cursor": _cursor(f"{inside}0".encode())},
        {"op": "list", "start": inside, "end": outside},
    ):
        assert peer.refusal(op)["code"] == "not_allowed"


def test_who_may_only_watch_is_told_no_value(protected_daemon: Protected, unique: str) -> None:
    root, key = protected_daemon.root, f"{unique}/k"
    begin = root.ask(put(key, b"secret-1"))[0]["revision"] - 1
    root.ask(put(key, b"secret-2"), {"op": "touch", "key": key, "ttl": 0.001})
    wait_until(lambda: "error" in root.ask(get(key))[0], what="the key expires")
    wait_until(
        lambda: root.ask({"op": "history", "key": key})[0]["events"][0]["op"] == "expire", what="an event"
    )
    watcher = protected_daemon.peer(protected_daemon.keys(unique, f"watch:{unique}/"))
    events = {"op": "events", "since": begin, "prefixes": [f"{unique}/"]}
    assert watcher.refusal(events)["needs"] == "read"
    assert watcher.refusal({**events, "values": False, "previous": True})["needs"] == "read"
    frames = watcher.exchange(*pack({**events, "values": False}))
    assert unpack(frames)["results"][0]["events"][-1]["op"] == "expire"
    assert b"secret" not in b"".join(frames)


# ── revocation ───────────────────────────────────────────────────────────────────────────────────


def test_grants_that_were_taken_hold_no_longer_with_the_next_request(
    protected_daemon: Protected, unique: str
) -> None:
    peer = protected_daemon.peer(protected_daemon.keys(unique, f"rw:{unique}/"))
    peer.ask(put(f"{unique}/k", b"x"))
    protected_daemon.change("identity_put", unique, grants=[f"ro:{unique}/"])
    assert peer.refusal(put(f"{unique}/k", b"x"))["needs"] == "write"
    assert peer.ask(get(f"{unique}/k"))[0]["value"] == b"x"


def test_a_key_that_has_ended_gets_no_answer(protected_daemon: Protected, unique: str) -> None:
    end = time.time_ns() // 1_000_000 + 1500
    keys = protected_daemon.keys(unique, "monitor", credential_expires_at=end)
    peer = protected_daemon.peer(keys, zmq.DEALER)
    request = pack({"op": "whoami"}, {"op": "status"})
    ended = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    monitor = peer.socket.get_monitor_socket(ended)
    is_answered = False
    while not monitor.poll(0):
        asked_at = time.time_ns() // 1_000_000  # not the store's clock, which may be ahead
        peer.socket.send_multipart([b"", *request])
        if not peer.socket.poll(200):
            continue
        reply = unpack(peer.socket.recv_multipart()[1:])
        if "error" in reply:
            assert reply["error"]["code"] == "unauthenticated"
            break
        assert reply["results"][0]["expires_at"] == end
        assert asked_at < end, "it was answered though it had ended before it asked"
        is_answered = True
    assert is_answered
    peer.socket.disable_monitor()
    monitor.close(0)


# ── operations on identities ─────────────────────────────────────────────────────────────────────


def test_an_admin_makes_changes_and_removes_identities(protected_daemon: Protected, unique: str) -> None:
    admin = protected_daemon.peer(protected_daemon.keys(f"{unique}-admin", "admin"))
    token, other = new_token(), new_token()
    first = {"op": "token_add", "name": unique, "id": token.id, "digest": token.digest}
    create = {"op": "identity_put", "name": unique, "create": True, "grants": ["ro:a/"]}
    assert admin.ask(first)[0]["error"]["code"] == "not_found"
    (made,) = admin.ask(create)
    assert (made["name"], made["grants"], made["tokens"], made["keys"]) == (unique, ["ro:a/"], [], [])
    assert admin.ask(create)[0]["error"]["code"] == "condition_failed"
    assert admin.ask(first)[0] == admin.ask(first)[0]
    (rotated,) = admin.ask({**first, "id": other.id, "digest": other.digest, "keep": 60})
    assert [row["id"] for row in rotated["tokens"]] == [token.id, other.id]
    assert rotated["tokens"][0]["expires_at"] - made["created_at"] < 120_000
    assert "expires_at" not in rotated["tokens"][1]
    table = read_table(protected_daemon.data / "access.json").table
    assert table.of_credential(other.text, made["created_at"]).name == unique
    delete = {"op": "token_delete", "name": unique, "id": token.id}
    assert [row["id"] for row in admin.ask(delete)[0]["tokens"]] == [other.id]
    assert admin.ask(delete)[0]["error"]["code"] == "not_found"
    assert admin.ask({"op": "identity_delete", "name": unique}) == [{"deleted": 1}]
    assert unique not in names(protected_daemon)


def test_lists_of_identities_hold_no_secrets(protected_daemon: Protected, unique: str) -> None:
    token = protected_daemon.token(unique, "ro:a/")
    reply = protected_daemon.root.exchange(b'{"v":1,"ops":[{"op":"identities"}]}')
    assert unique.encode() in reply[0]
    (row,) = read_table(protected_daemon.data / "access.json").table.identities[unique].tokens
    for secret in (token, row.digest, protected_daemon.admin_token):
        assert secret.encode() not in reply[0]


def test_the_facade_gets_the_table_as_it_is(protected_daemon: Protected, unique: str) -> None:
    token = protected_daemon.token(unique, "ro:a/")
    (result,) = protected_daemon.root.ask({"op": "access"})
    table = AccessTable.decode(result["value"], bytes.fromhex(result["signing_key"]))
    assert table.tag == result["tag"] == protected_daemon.root.ask({"op": "status"})[0]["access"]["tag"]
    assert table.of_credential(token, 0).name == unique
    everything = protected_daemon.peer(protected_daemon.keys(f"{unique}-all", "all:*", "admin", "monitor"))
    assert everything.refusal({"op": "access"})["needs"] == "facade"


def test_an_op_that_changes_identities_is_done_once_beside_large_reads(
    protected_daemon: Protected, unique: str
) -> None:
    root = protected_daemon.root
    root.ask(*[put(f"{unique}/{number}", bytes(1000)) for number in range(1000)])
    lists = [{"op": "list", "prefix": f"{unique}/"}] * 20
    create = {"op": "identity_put", "name": unique, "create": True}
    results = root.ask(*lists, create, *lists, {"op": "identity_delete", "name": unique})
    assert [result["name"] for result in results if "name" in result] == [unique]
    assert results[-1] == {"deleted": 1}
    assert all(len(result["items"]) == 1000 for result in results if "items" in result)


@pytest.mark.parametrize(
    "op",
    [
        {"op": "identity_put", "name": "ci", "grants": ["rx:a/"]},
        {"op": "identity_put", "name": "ci", "id": "0" * 8},
        {"op": "identity_put", "name": "facade"},
        {"op": "identity_put", "name": "a b"},
        {"op": "identity_put", "name": "anonymous", "grants": ["admin"]},
        {"op": "identity_put", "name": "x" * 33},
        {"op": "identity_put", "name": "ci", "public_key": "x" * 39},
        {"op": "token_add", "name": "ci", "id": "0" * 8, "digest": "x"},
        {"op": "token_add", "name": "ci", "id": "0" * 8, "digest": "0" * 64, "keep": -1},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_words(protected_daemon: Protected, op: dict[str, Any]) -> None:
    before = (protected_daemon.data / "access.json").read_bytes()
    reply = protected_daemon.root.reply_to(op)
    error = reply.get("error") or reply["results"][0]["error"]
    assert error["code"] == "bad_request"
    assert (protected_daemon.data / "access.json").read_bytes() == before


def test_a_change_on_the_files_beside_the_daemon_is_taken(protected_daemon: Protected, unique: str) -> None:
    token = new_token()
    stored = changes.StoredToken(token.id, token.digest, 0)
    edit(protected_daemon.data, changes.put_identity(unique, 0, grants=["admin"], token=stored))
    wait_until(lambda: unique in names(protected_daemon), what="the daemon takes the file")


def test_without_access_nobody_has_a_name(daemon: Daemon) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.REQ) as socket:
        socket.connect(daemon.requests)
        peer = Peer(socket)
        assert peer.ask({"op": "whoami"})[0] == {
            "access": False,
            "name": "",
            "grants": [],
            "kind": "none",
            "credential": "",
        }
        assert peer.ask({"op": "status"})[0]["access"] is None
        for op in (
            {"op": "access"},
            {"op": "identities"},
            {"op": "identity_put", "name": "a"},
            {"op": "token_delete", "name": "a", "id": "0" * 8},
        ):
            error = peer.ask(op)[0]["error"]
            assert error["code"] == "not_allowed"
            assert "start with --access required" in error["message"]
    context.term()


def test_what_becomes_of_the_file_is_told_by_the_status_and_by_readyz(
    start_daemon: StartDaemon, start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon(access="required")
    facade = start_facade(daemon, facade_key_file=str(daemon.data / "facade.key"))
    protected = Protected(daemon, facade)
    session, file = Session(facade.url), daemon.data / "access.json"
    token, monitor = protected.token("ci", "rw:*"), protected.token("monitor", "monitor")
    good = file.read_bytes()

    def check(state: str) -> dict[str, Any]:
        page = session.get("/readyz?verbose", authorization=f"Bearer {monitor}").json
        (found,) = [each for each in page.get("checks", ()) if each["name"] == "access"] or [{"status": ""}]
        return found if found["status"] == state else {}

    def status_of(token: str) -> int:
        return session.get("/v1/kv?count=1", authorization=f"Bearer {token}").status

    assert (status_of(token), session.get("/readyz").status) == (200, 200)
    file.write_bytes(good[:-9])
    found = wait_until(lambda: check("warning"), what="the daemon sees a bad file")
    assert "access.json cannot be used: it is not JSON" in found["message"]
    assert (status_of(token), session.get("/readyz").status) == (200, 200)
    file.write_bytes(good)
    wait_until(lambda: check("ok"), what="the daemon sees that it was mended")

    file.rename(daemon.data / "away")
    wait_until(lambda: status_of(token) == 401, what="nobody is let in")
    assert wait_until(lambda: session.get("/readyz").status == 503)
    assert session.get("/readyz").json.get("checks") is None
    assert protected.root.ask({"op": "status"})[0]["access"]["is_gone"]
    assert protected.root.ask({"op": "identities"})[0] == {"identities": []}
    edit(daemon.data, changes.put_identity("new", 0, create=True))  # the admin is lost
    wait_until(lambda: session.get("/readyz").status == 200, what="there is a file again")
    assert status_of(token) == 401
    (daemon.data / "away").rename(file)
    wait_until(lambda: status_of(token) == 200, what="who was there before is let in")
    session.close()
    protected.close()
