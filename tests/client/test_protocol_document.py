"""``docs/protocol.md`` is the protocol that is spoken: its tables are the code's, its examples happen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zmq

from kvstore_client import Client, commands
from kvstore_client.arguments import DEFAULT_TIMEOUT
from kvstore_client.transport import retry
from kvstore_client.transport.connection import RequestBody
from kvstore_core import connection_monitor, follower
from kvstore_core.errors import ERRORS
from kvstore_core.limits import MAX_CLIENT_BYTES, MAX_KEY_BYTES, MAX_PAGE
from kvstore_core.model import Event, Record
from kvstore_core.operations import OPERATIONS, Operation
from kvstore_core.wire import HEARTBEAT_TOPIC, VERSION, Heartbeat, Limits
from support.markdown import table_rows
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon
from support.wire import ANYTHING, is_as_shown

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text()


def first_column(heading: str) -> list[str]:
    return [name for row in table_rows(TEXT, heading) for name in re.findall(r"`([^`]+)`", row[0])]


def plain(cell: str) -> str:
    return cell.strip("`")


def section(heading: str) -> str:
    """The text under a heading, up to the next one."""
    return re.split(r"^#", TEXT.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_the_version_is_the_one_spoken() -> None:
    assert f"This is version {VERSION} of the protocol" in TEXT
    assert f"the version of the protocol, {VERSION} |" in TEXT


def test_every_operation_has_its_section_in_the_order_of_the_table() -> None:
    named = re.findall(r"^### 4\.\d+ ([a-z_]+)$", TEXT, re.MULTILINE)
    assert named == list(OPERATIONS)


@pytest.mark.parametrize(("number", "row"), list(enumerate(OPERATIONS.values(), 1)), ids=OPERATIONS)
def test_an_operation_is_described_as_it_is_checked(number: int, row: Operation) -> None:
    heading = f"4.{number} {row.name}"
    summary = " ".join(section(heading).split())
    assert summary.lower().startswith(row.meaning.lower())
    assert ("Writes." in summary, "Has a value." in summary) == (row.writes, row.has_value)
    described = {
        plain(name): (required == "yes", must_be)
        for name, required, must_be in (table_rows(TEXT, heading) if row.fields else [])
    }
    assert described == {name: (field.required, field.must_be) for name, field in row.fields.items()}


def test_every_error_is_listed_as_it_is_shown() -> None:
    described = [
        (plain(code), int(status), int(exit_status), retryable == "yes", title)
        for code, status, exit_status, retryable, title in table_rows(TEXT, "7. Errors")
    ]
    assert described == [tuple(row) for row in ERRORS.values()]


def test_the_fields_of_records_events_and_heartbeats_are_complete() -> None:
    in_record = set(Record._fields) - {"key", "value"} | {"size"}
    assert set(first_column("3.4 The fields of a record")) == in_record
    in_event = {field.name for field in fields(Event)} - {"record"}
    assert set(first_column("3.5 The fields of an event")) == in_event
    header = TEXT.split("the daemon publishes a heartbeat of two frames")[1].split("### 5.2")[0]
    assert set(re.findall(r"^\| `(\w+)`", header, re.MULTILINE)) == {"v", *Heartbeat._fields}
    assert HEARTBEAT_TOPIC == b"\0heartbeat"
    assert '%x00 "heartbeat"' in TEXT


@pytest.mark.lmdb_only("how many ops an atomic request may have")
def test_the_limits_and_the_status_are_those_of_a_daemon(daemon: Daemon) -> None:
    with Client(daemon.requests) as client:
        status = client.status()
    assert set(first_column("4.13 status")) == set(status)
    explained = section("4.13 status")
    for part in ("process", "counters", "commits", "retention"):
        for name in status[part]:
            assert f"`{name}`" in explained, f"{part}.{name}"
    rows = table_rows(TEXT, "8. Limits")
    described = {plain(name): int(default.partition(",")[0]) for name, default, _ in rows}
    assert described == status["limits"]
    assert all(plain(code) in ERRORS for _, _, code in rows)
    assert described["key_bytes"] == MAX_KEY_BYTES
    assert described["page"] == MAX_PAGE
    of_requests = ("batch_ops", "batch_bytes", "atomic_ops", "atomic_bytes", "value_bytes")
    assert Limits(*(described[name] for name in of_requests)) == Limits()
    assert f"a text of 1 to {MAX_CLIENT_BYTES} bytes that names the client" in TEXT


def test_a_page_without_a_limit_is_as_long_as_a_page_may_be(daemon: Daemon) -> None:
    assert "`page` is the highest `limit` of an op, and also what an op without `limit` gets" in TEXT
    with Client(daemon.requests, timeout=50) as client:
        client.batch([commands.put(f"p{number}", b"") for number in range(MAX_PAGE + 1)])
        client.batch([commands.put("k", b"") for _ in range(MAX_PAGE + 1)])
        assert len(client.list_page().records) == MAX_PAGE
        assert len(client.events(0).events) == MAX_PAGE
        assert len(client.history("k").events) == MAX_PAGE


@pytest.mark.lmdb_only("the size of a transaction")
def test_a_delete_by_prefix_without_a_limit_takes_a_page(daemon: Daemon) -> None:
    with Client(daemon.requests, timeout=PATIENCE_SECONDS) as client:
        client.batch([commands.put(f"p{number}", b"") for number in range(MAX_PAGE + 1)])
        reply = client.request(RequestBody([{"op": "delete_prefix", "prefix": "p"}], writes=True))
        assert reply.results == [{"revision": reply.revision, "deleted": MAX_PAGE, "more": True}]


def test_the_waits_and_pauses_are_those_of_our_client() -> None:
    prose = " ".join(section("6. Numbers, time-outs and retries").split())
    assert f"another one after {retry.FIRST_ATTEMPT_SECONDS:g} second, and each time" in prose
    assert f"half as long again up to {retry.LONGEST_ATTEMPT_SECONDS:g} seconds" in prose
    assert f"gives the daemon {follower.PAGE_SECONDS:g} seconds for each" in prose
    assert f"`ZMQ_HEARTBEAT_IVL` to {connection_monitor.PING_MS} and" in prose
    assert f"`ZMQ_HEARTBEAT_TIMEOUT` to {connection_monitor.SILENCE_MS} before" in prose
    assert (
        f"ends after {(connection_monitor.PING_MS + connection_monitor.SILENCE_MS) / 1000:g} seconds at most"
        in prose
    )
    assert f"begin at {retry.FIRST_PAUSE_SECONDS:g} seconds and double" in prose
    assert f"up to {retry.LONGEST_PAUSE_SECONDS:g} second." in prose
    for example in ("subscriber.py", "subscriber.mjs"):
        numbers = (ROOT / "examples" / example).read_text().replace("_", "")
        assert str(connection_monitor.PING_MS) in numbers
        assert str(connection_monitor.SILENCE_MS) in numbers
    assert f"the time-out of the call, {DEFAULT_TIMEOUT:g} seconds by default" in prose


def test_the_sections_that_the_code_refers_to_say_what_it_expects() -> None:
    titles = dict(re.findall(r"^## (\d+)\. (.+)$", TEXT, re.MULTILINE))
    assert (titles["4"], titles["5"], titles["7"]) == ("Operations", "Changes", "Errors")
    assert titles["6"] == "Numbers, time-outs and retries"
    for source in (ROOT / "client").rglob("*.py"):
        for number in re.findall(r"(?:protocol(?:\.md`*)?|\() ?section (\d+)", source.read_text()):
            assert number in titles, source


# ── the worked examples ──────────────────────────────────────────────────────────────────────────


class Message(NamedTuple):
    """A message of an example: who sends it (C, S or P), and its frames."""

    sender: str
    frames: list[str]


def messages() -> Iterator[Message]:
    for block in re.findall(r"^```frames\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        for paragraph in block.strip().split("\n\n"):
            lines = paragraph.splitlines()
            assert len({line[:2] for line in lines}) == 1, f"one message, one sender: {paragraph}"
            yield Message(lines[0][0], [line[3:].replace("\\0", "\0") for line in lines])


def parsed(text: str) -> Any:
    """The JSON of an example, where an ellipsis without quotes stands for a number."""
    return json.loads(re.sub(rf'(?<!"){ANYTHING}', f'"{ANYTHING}"', text))


def assert_as_shown(shown: list[str], real: list[bytes]) -> None:
    assert len(shown) == len(real), f"{real} instead of {shown}"
    for text, frame in zip(shown, real, strict=True):
        if text.startswith("{"):
            assert is_as_shown(parsed(text), json.loads(frame)), f"{frame!r} instead of {text}"
        else:
            assert frame.decode() == text


class Replay:
    """A client and a subscriber that do what the examples show."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], daemon: Daemon) -> None:
        self._requests = context.socket(zmq.REQ)
        self._changes = context.socket(zmq.SUB)
        for socket, endpoint in ((self._requests, daemon.requests), (self._changes, daemon.changes)):
            socket.linger = 0
            socket.rcvtimeo = int(1000 * PATIENCE_SECONDS)
            socket.connect(endpoint)
        self._changes.subscribe(b"")
        assert self._changes.recv_multipart()[0] == HEARTBEAT_TOPIC, "the subscription has arrived"

    def play(self, message: Message) -> None:
        if message.sender == "C":
            self._requests.send_multipart([frame.encode() for frame in message.frames])
        elif message.sender == "S":
            assert_as_shown(message.frames, self._requests.recv_multipart())
        else:
            assert_as_shown(message.frames, self._published(message))

    def _published(self, expected: Message) -> list[bytes]:
        """The next message; heartbeats that are not shown, or of before, are passed over."""
        while True:
            frames = self._changes.recv_multipart()
            if frames[0] != HEARTBEAT_TOPIC:
                return frames
            if expected.frames[0] == HEARTBEAT_TOPIC.decode() and is_as_shown(
                parsed(expected.frames[1]), json.loads(frames[1])
            ):
                return frames

    def close(self) -> None:
        self._requests.close()
        self._changes.close()


@pytest.mark.lmdb_only("the printed revisions are those of a new store in a file")
def test_the_worked_examples_happen_as_they_are_printed(daemon: Daemon) -> None:
    script = list(messages())
    assert {message.sender for message in script} == {"C", "S", "P"}
    with zmq.Context() as context, closing(Replay(context, daemon)) as replay:
        for message in script:
            replay.play(message)
