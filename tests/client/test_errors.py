"""Errors and all else that is handed out: by class, and over to another process whole."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import kvstore_client
from kvstore_client import (
    AsyncClient,
    AsyncSubscription,
    Client,
    ConditionFailed,
    Cursor,
    Event,
    Filter,
    Heartbeat,
    KvError,
    NotFound,
    Record,
    Reset,
    Subscription,
    Sync,
    commands,
)
from kvstore_client.commands import (
    CountPage,
    Deleted,
    DigestPage,
    HistoryPage,
    Incremented,
    RecordPage,
    Written,
)
from kvstore_core import errors
from kvstore_core.errors import ERRORS
from kvstore_core.follower import LogPage
from kvstore_core.wire import Limits, PublishedEvent, Reply
from support.servers import Daemon

NOBODY = "tcp://127.0.0.1:9"
RECORD = Record("k", b"v", "text/plain", 7, 5, 2, 1, None)
EVENT = Event("put", "k", 7, 0, 1, 1, RECORD, None, 0)
CURSOR = Cursor(7, "0123456789abcdef")


def class_name(code: str) -> str:
    return "".join(word.capitalize() for word in code.split("_"))


@pytest.mark.parametrize("code", ERRORS)
def test_every_row_has_a_class_named_after_it(code: str) -> None:
    error = KvError(code, "why", revision=7)
    assert type(error).__name__ == class_name(code)
    assert type(error) is getattr(kvstore_client, class_name(code))
    assert class_name(code) in kvstore_client.__all__
    assert type(KvError.from_json(error.as_json())) is type(error)
    assert (type(error).__doc__ or "").startswith(f"``{code}``: {ERRORS[code].title}")
    assert isinstance(error, KvError)
    assert (error.code, error.details) == (code, {"revision": 7})


def test_every_class_is_of_a_row() -> None:
    classes = {kind.__name__ for kind in KvError.__subclasses__() if kind.__module__ == errors.__name__}
    assert classes == {class_name(code) for code in ERRORS}


def test_what_time_alone_cures_is_the_service_that_is_away_or_has_much_to_do() -> None:
    temporary = {code for code, row in ERRORS.items() if row.is_temporary}
    assert temporary == {"too_busy", "unavailable", "timed_out"}
    assert all(row.retryable for row in ERRORS.values() if row.is_temporary)


def test_an_error_of_a_newer_daemon_is_an_internal_one_that_names_it() -> None:
    error = KvError.from_json({"code": "new", "message": "m", "self": 1, "cls": 2})
    assert isinstance(error, kvstore_client.Internal)
    assert (error.message, error.details) == ("new: m", {"self": 1, "cls": 2})


@pytest.mark.parametrize(
    "over",
    [copy.copy, copy.deepcopy]
    + [lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)],
)
@pytest.mark.parametrize("cause", [None, ValueError("v"), KvError("not_found", "x", key="k")])
def test_an_error_is_carried_over_whole(over: Callable[[Any], Any], cause: BaseException | None) -> None:
    error = KvError("condition_failed", "the condition does not hold", revision=7, message_id=["a"])
    error.__cause__ = cause
    error.add_note("a note")
    there = over(error)
    assert type(there) is ConditionFailed
    assert (there.code, there.message, there.details) == (error.code, error.message, error.details)
    assert (str(there), repr(there), there.__notes__) == (str(error), repr(error), error.__notes__)
    assert repr(there.__cause__) == repr(cause)


def test_a_cause_that_cannot_be_pickled_keeps_no_error_back() -> None:
    error = KvError("internal", "m")
    error.__cause__ = RuntimeError(threading.Lock())
    there = pickle.loads(pickle.dumps(error))
    assert str(there.__cause__).startswith("RuntimeError: <unlocked")


def get_in_another_process(requests: str, key: str) -> Record:
    with Client(requests) as client:
        return client.get(key)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_missing_key_breaks_no_pool(daemon: Daemon, method: str) -> None:
    with Client(daemon.requests) as client:
        client.put("there", b"v")
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        missing = pool.submit(get_in_another_process, daemon.requests, "missing")
        with pytest.raises(NotFound, match="missing"):
            missing.result()
        assert pool.submit(get_in_another_process, daemon.requests, "there").result().value == b"v"
    with context.Pool(1) as old_pool, pytest.raises(NotFound):
        old_pool.apply(get_in_another_process, (daemon.requests, "missing"))


HANDED_OUT = [
    RECORD,
    EVENT,
    CURSOR,
    Sync(CURSOR),
    Reset("expired", 3, CURSOR),
    Heartbeat("e", 1, 0, 5),
    PublishedEvent(EVENT, 6, "e"),
    Reply("e", 7, [{"revision": 7}]),
    Limits(),
    Written(7, 7, 1),
    Incremented(5, 7, 7, 1),
    Deleted(1, 7),
    RecordPage([RECORD], None, 7),
    CountPage(1, None, 7),
    DigestPage("0" * 64, 0, None, 7),
    HistoryPage([EVENT], None, False),
    LogPage([EVENT], 7, 0, 7, "e"),
    Filter(("a",), frozenset({"k"})),
]


@pytest.mark.parametrize("thing", HANDED_OUT, ids=lambda thing: type(thing).__name__)
def test_whatever_is_handed_out_is_carried_over_and_shown(thing: object) -> None:
    for there in (pickle.loads(pickle.dumps(thing)), copy.copy(thing), copy.deepcopy(thing)):
        assert there == thing
        assert type(there) is type(thing)
    assert re.match(rf"{type(thing).__name__}\(\w+=", repr(thing))


@pytest.mark.parametrize(
    "command",
    [
        commands.get("k"),
        commands.get("é"),
        commands.put("k", "v", ttl=5),
        commands.delete("k"),
        commands.delete_prefix("k"),
        commands.incr("k"),
        commands.touch("k", 5),
        commands.persist("k"),
        commands.list_page(),
        commands.count_page(),
        commands.events(CURSOR),
        commands.history("k"),
        commands.status(),
    ],
    ids=lambda command: command.op["op"],
)
def test_a_command_is_carried_over(command: commands.Command[Any]) -> None:
    there = pickle.loads(pickle.dumps(command))
    assert (there.op, there.value) == (command.op, command.value)
    assert re.match(r"Command\(op=", repr(command))


def test_a_large_value_is_shown_in_part() -> None:
    shown = repr(EVENT.__class__("put", "k", 1, 0, 1, 1, RECORD._replace(value=b"x" * 1_000_000), None, 0))
    assert len(shown) < 500
    assert "(1000000 bytes)" in shown


@pytest.mark.parametrize("kind", [Client, AsyncClient, Subscription, AsyncSubscription])
def test_connections_are_shown_and_not_carried_over(kind: type[Any]) -> None:
    connected = kind(NOBODY, *([NOBODY] if "Subscription" in kind.__name__ else []))
    assert repr(connected) == f"<{kind.__name__} of {NOBODY}>"
    for over in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=f"a {kind.__name__} can be neither pickled nor copied: make one"):
            over(connected)
    connected.close()
    connected.close()
    assert repr(connected) == f"<{kind.__name__} of {NOBODY}, closed>"
