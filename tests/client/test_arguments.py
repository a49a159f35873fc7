"""What is passed wrongly is refused by the name of the argument, whatever it is and wherever."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from kvstore_client import (
    AsyncClient,
    AsyncSubscription,
    Client,
    Cursor,
    KvError,
    Mirror,
    Subscription,
    commands,
)
from kvstore_client.arguments import address_of
from kvstore_client.commands import Command
from kvstore_client.transport.connection import RequestBody
from kvstore_client.transport.wait import SocketWait
from kvstore_core.filters import Filter
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon

NOBODY = "tcp://127.0.0.1:9"

GOOD: dict[str, Any] = {
    "key": "k",
    "value": b"5",
    "keys": ["k"],
    "prefix": "p",
    "ttl": 5,
    "revision": 1,
    "since": 0,
    "batch": [commands.get("k")],
    "command": commands.get("k"),
    "name": "n",
    "token_id": "0" * 8,
    "public_key": "0" * 40,
    "backup_id": "0" * 16,
    "offset": 0,
    "size": 1,
    "subscriber_id": "n1",
    "body": RequestBody([{"op": "status"}]),
    "work": lambda t: t.revision,
}
"""What the methods have to be given; the other arguments have defaults."""

WRONG: list[Any] = [
    None, True, 5, -1, 0, 2**70, 1.5, -0.5, math.nan, math.inf, 1e300, "", "x", "\ud800", "a\0b", "x" * 600,
    b"x", [], [5], ["x"], [None], (), {}, {"a": 1}, object(), timedelta(1), 1j, Cursor(0, "x"), Filter(),
    Filter("x"), Filter(5), commands.get("k"), [commands.get("k")], Client,
]  # fmt: skip

INNARDS = re.compile(
    r"has no attribute|memoryview|unsupported operand|not iterable|concatenate|positional|unhashable"
    r"|not supported between|must be str, not|is not JSON serializable|ops\[|e-\d\d|object cannot be"
)

METHODS = [name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")]
CASES = [
    (method, argument)
    for method in METHODS
    for argument in list(inspect.signature(getattr(Client, method)).parameters)[1:]
]


def is_refused_clearly(call: Callable[[], object], what: str) -> None:
    """The call does it, or raises what tells the caller what is wrong."""
    try:
        call()
    except Exception as raised:
        error = raised
    else:
        return
    assert isinstance(error, (KvError, TypeError)), f"{what}: {error!r}"
    assert not INNARDS.search(str(error)), f"{what}: {error!r}"


def run(client: Client, method: str, arguments: dict[str, Any]) -> None:
    result = getattr(client, method)(**arguments)
    if inspect.isgenerator(result):
        list(result)


@pytest.mark.parametrize(("method", "argument"), CASES)
def test_each_argument_of_a_client_is_checked(shared_daemon: Daemon, method: str, argument: str) -> None:
    parameters = inspect.signature(getattr(Client, method)).parameters
    needed = {
        name: GOOD[name]
        for name, parameter in parameters.items()
        if name != "self" and parameter.default is inspect.Parameter.empty
    }
    if method == "wait":
        needed["timeout"] = 0.01
    elif method == "changes":
        needed["since"] = 0  # what is there is not waited for
    with Client(shared_daemon.requests, changes=shared_daemon.changes, timeout=PATIENCE_SECONDS) as client:
        client.put("k", b"5")
        for wrong in WRONG:
            arguments = {**needed, argument: wrong}
            is_refused_clearly(lambda: run(client, method, arguments), f"{method}({argument}={wrong!r})")  # noqa: B023
        client.put("alive", b"")


@pytest.mark.parametrize("kind", [Client, AsyncClient, Subscription, AsyncSubscription, Mirror])
def test_each_argument_of_a_constructor_is_checked(kind: type[Any]) -> None:
    for argument in list(inspect.signature(kind).parameters):
        for wrong in WRONG:
            if argument in ("requests", "changes") and isinstance(wrong, str):
                with pytest.raises(ValueError, match="not a ZeroMQ endpoint"):
                    kind(**{argument: wrong})
            else:
                is_refused_clearly(
                    lambda: kind(**{argument: wrong}).close(),  # noqa: B023
                    f"{kind.__name__}({argument}={wrong!r})",
                )


@pytest.mark.parametrize("method", ["next", "next_batch"])
def test_how_long_a_subscription_waits_is_checked(method: str) -> None:
    with Subscription(NOBODY, NOBODY) as subscription:
        assert getattr(subscription, method)(0) is None
        assert getattr(subscription, method)(0.01) is None
        for wrong in WRONG:
            # these wait for a daemon that is not there
            if wrong is None or (wrong in (5, 1.5, math.inf, 2**70, 1e300) and wrong is not True):
                continue
            is_refused_clearly(lambda: getattr(subscription, method)(wrong), f"{method}({wrong!r})")  # noqa: B023


@pytest.mark.parametrize("timeout", [0, -1, 0.0, math.nan, -math.inf])
def test_a_call_needs_time(timeout: float) -> None:
    with Client(NOBODY) as client, pytest.raises(KvError, match="timeout is a number of seconds above 0"):
        client.get("k", timeout=timeout)
    with pytest.raises(KvError, match="timeout is a number of seconds above 0"):
        Client(NOBODY, timeout=timeout)

    async def get() -> None:
        async with AsyncClient(NOBODY) as client:
            await client.get("k", timeout=timeout)

    with pytest.raises(KvError, match="timeout is a number of seconds above 0"):
        asyncio.run(get())


@pytest.mark.parametrize("timeout", [5, 1e12, 2**80, math.inf])
def test_a_call_may_have_all_the_time_there_is(shared_daemon: Daemon, timeout: float) -> None:
    with Client(shared_daemon.requests) as client:
        client.put("k", b"v", timeout=timeout)

    async def get() -> object:
        async with AsyncClient(shared_daemon.requests, timeout=timeout, connections=1) as client:
            await asyncio.gather(client.get("k"), client.get("k"))
            return (await client.get("k")).value

    assert asyncio.run(get()) == b"v"


def test_what_is_wrong_with_a_command_is_said_without_a_number() -> None:
    with pytest.raises(KvError, match=r"^key must be a text of 1 to 511 bytes") as caught:
        commands.get(5)  # type: ignore[arg-type]
    assert caught.value.details == {}
    with pytest.raises(KvError, match=r"^get needs 'key'"):
        commands.get(None)  # type: ignore[arg-type]
    assert isinstance(commands.put("k", "v"), Command)


# ── addresses ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("kvstore://db", ("tcp://db:5555", "tcp://db:5556", {})),
        ("kvstore://db:7000/", ("tcp://db:7000", "tcp://db:7001", {})),
        ("kvstore://[::1]:7000", ("tcp://[::1]:7000", "tcp://[::1]:7001", {})),
        ("kvstore://db?changes=9", ("tcp://db:5555", "tcp://db:9", {})),
        (
            "kvstore://db?changes=ipc:///run/c&timeout=2.5",
            ("tcp://db:5555", "ipc:///run/c", {"timeout": 2.5}),
        ),
        ("kvstore://db?connections=3", ("tcp://db:5555", "tcp://db:5556", {"connections": 3})),
    ],
)
def test_a_url_says_where_the_daemon_is(url: str, address: tuple[str, str, dict[str, Any]]) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost:5000", "address for HTTP"),
        ("localhost:5555", "of the form kvstore://"),
        ("tcp://localhost:5555", "of the form kvstore://"),
        ("kvstore://", "of the form kvstore://"),
        ("kvstore://db:x", "of the form kvstore://"),
        ("kvstore://db:70000", "of the form kvstore://"),
        ("kvstore://db/0", "of the form kvstore://"),
        ("kvstore://db?colour=red", "no option 'colour'; it takes: changes, timeout, connections"),
        ("kvstore://db?timeout=soon", "timeout='soon' in the URL is not a number"),
        ("kvstore://me:secret@db", "no users and no passwords"),
    ],
)
def test_another_url_is_refused_with_what_it_should_be(url: str, says: str) -> None:
    for kind in (Client, AsyncClient, Subscription, AsyncSubscription):
        with pytest.raises(ValueError, match=re.escape(says)) as caught:
            kind.from_url(url)
        assert "secret" not in str(caught.value)


def test_all_forms_are_made_from_a_url() -> None:
    for kind in (Client, AsyncClient, Subscription, AsyncSubscription):
        made = kind.from_url("kvstore://127.0.0.1:7?timeout=2&connections=3")
        assert repr(made).startswith(f"<{kind.__name__} of tcp://127.0.0.1:{7 + ('Subs' in kind.__name__)}")
        made.close()
    with Client.from_url("kvstore://127.0.0.1:7?timeout=2", timeout=3) as client:
        assert client._timeout == 3


def test_the_environment_says_where_the_daemon_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSTORE_REQUESTS", "tcp://127.0.0.1:7")
    monkeypatch.setenv("KVSTORE_CHANGES", "tcp://127.0.0.1:8")
    for kind, port in ((Client, 7), (AsyncClient, 7), (Subscription, 8), (AsyncSubscription, 8)):
        made = kind()
        assert repr(made) == f"<{kind.__name__} of tcp://127.0.0.1:{port}>"
        made.close()
    with Client(NOBODY) as client:
        assert NOBODY in repr(client)
    monkeypatch.setenv("KVSTORE_REQUESTS", "")
    with Client() as client:
        assert "tcp://127.0.0.1:5555" in repr(client)


@pytest.mark.parametrize("seconds", [2**31, 2**70, 1e300, math.inf])
def test_a_wait_of_any_length_fits_into_a_poll(seconds: float) -> None:
    """A call may be given any timeout, and waits for most of it where the daemon says nothing."""
    assert 0 < SocketWait((), seconds).milliseconds() < 2**31
