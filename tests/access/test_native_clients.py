"""The Python client and subscription at a daemon that asks for keys."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvstore_client import AsyncClient, AsyncSubscription, Client, Mirror, Subscription, Sync
from kvstore_core.access.login_file import CurveKeys
from kvstore_core.errors import BadRequest, KvError, NotAllowed, Unauthenticated
from kvstore_core.model import Event
from support.identities import Identities, KeyPair, new_key
from support.servers import Daemon, StartDaemon, wait_until

LONG = 60
"""A time-out that no test waits for: refusals come at once."""


class Service:
    """A protected daemon and the login files of its identities."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.identities = Identities(folder / "data")
        self.daemon: Daemon
        self.keys: dict[str, KeyPair] = {}

    def add(self, name: str, *grants: str) -> None:
        self.keys[name] = self.identities.add(name, *grants)

    def login(self, name: str, **other: str) -> Path:
        """The login file of an identity, with another key for some."""
        path = self.folder / f"{name}.json"
        keys = self.identities.keys(self.keys[name])
        return self.identities.write_login(keys._replace(**other), self.daemon.requests, path)

    def client(self, name: str) -> Client:
        return Client(self.daemon.requests, login=self.login(name), timeout=LONG)

    def subscription(self, name: str, **options: Any) -> Subscription:
        return Subscription(self.daemon.requests, self.daemon.changes, login=self.login(name), **options)


@pytest.fixture
def start(start_daemon: StartDaemon, tmp_path: Path) -> Callable[..., Service]:
    """``start(alice=["ro:app/"])``: a protected daemon with these identities, and root."""

    def start(**grants: list[str]) -> Service:
        service = Service(tmp_path)
        for name, texts in {"root": ["all:*"], **grants}.items():
            service.add(name, *texts)
        service.daemon = start_daemon(access="required", data=str(tmp_path / "data"))
        return service

    return start


def until_sync(subscription: Subscription) -> None:
    while not isinstance(item := subscription.next(LONG), Sync):
        assert item is not None


def keys_of(subscription: Subscription, count: int) -> list[str]:
    """The keys of the next events."""
    keys: list[str] = []
    while len(keys) < count:
        item = subscription.next(LONG)
        assert item is not None
        if isinstance(item, Event):
            keys.append(item.key)
    return keys


def refusal_of(subscription: Subscription) -> KvError:
    """The error that ends a subscription."""
    try:
        while subscription.next(LONG):
            pass
    except KvError as error:
        return error
    raise AssertionError("nothing came")


def is_taken_away(subscription: Subscription) -> bool:
    """Whether the subscription says that its grants are no longer enough."""
    try:
        subscription.next(0.2)
    except NotAllowed:
        return True
    return False


def test_the_login_file_lets_clients_and_subscriptions_in(
    start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start(alice=["rw:app/"])
    requests, changes = service.daemon.requests, service.daemon.changes
    monkeypatch.setenv("KVSTORE_LOGIN_FILE", str(service.login("alice")))
    with Client(requests) as client, Subscription(requests, changes, prefixes=["app/"]) as subscription:
        until_sync(subscription)
        client.put("app/x", "1")
        assert client.get("app/x").value == b"1"
        assert keys_of(subscription, 1) == ["app/x"]
        with pytest.raises(NotAllowed, match="write on 'other'"):
            client.put("other", "1")

    async def both() -> None:
        async with (
            AsyncClient(requests) as client,
            AsyncSubscription(requests, changes, prefixes=["app/"]) as one,
        ):
            assert isinstance(await one.next(LONG), Sync)
            await client.put("app/y", "2")
            event = await one.next(LONG)
            assert isinstance(event, Event)
            assert event.key == "app/y"

    asyncio.run(both())


def test_a_grant_on_one_key_is_enough_to_follow_it(start: Callable[..., Service]) -> None:
    service = start(bob=["ro:app/config"])
    with service.client("root") as root, service.subscription("bob", keys=["app/config"]) as subscription:
        until_sync(subscription)
        for number in range(20):
            root.put("app/config2", "no")
            root.put("app/config", str(number))
        seen = []
        while len(seen) < 20:
            item = subscription.next(LONG)
            assert isinstance(item, Event)
            assert item.record is not None
            seen.append(item.record.value)
        assert seen == [str(number).encode() for number in range(20)]
        with service.subscription("bob", prefixes=["app/"]) as other:
            assert refusal_of(other).code == "not_allowed"


def test_a_subscription_that_hears_nothing_ends_when_its_grant_is_taken_away(
    start: Callable[..., Service],
) -> None:
    service = start(bob=["ro:app/"], boss=["admin"])
    with service.client("boss") as boss, service.subscription("bob", prefixes=["app/"]) as subscription:
        until_sync(subscription)
        boss.identity_put("bob", grants=["ro:other/"])
        assert refusal_of(subscription).code == "not_allowed"


def test_a_mirror_whose_access_is_taken_away_says_so_and_goes_on_when_it_is_given_back(
    start: Callable[..., Service],
) -> None:
    service = start(bob=["ro:app/"], boss=["admin"])
    options: dict[str, Any] = {"prefixes": ["app/"], "timeout": LONG}
    requests, changes = service.daemon.requests, service.daemon.changes
    with service.client("root") as root, service.client("boss") as boss:
        root.put("app/a", "1")
        with Mirror(requests, changes, login=service.login("bob"), **options) as mirror:
            mirror.verify()
            boss.identity_put("bob", grants=["ro:other/"])
            wait_until(lambda: mirror.error is not None, what="gone")
            assert not mirror.is_current
            with pytest.raises(NotAllowed):
                mirror.wait(root.put("app/a", "2").revision)
            assert mirror["app/a"].text == "1", "what it had is gone"
            boss.identity_put("bob", grants=["ro:app/"])
            wait_until(lambda: mirror.error is None and mirror.is_current, what="back")
            assert mirror["app/a"].text == "2"
        with pytest.raises(NotAllowed), Mirror(requests, changes, login=service.login("bob"), timeout=LONG):
            pass


@pytest.mark.parametrize("endpoint", ["tcp", "ipc"])
def test_who_is_refused_is_told_so_at_once(endpoint: str, start_daemon: StartDaemon, tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.add("alice", "all:*")
    places = (
        {} if endpoint == "tcp" else {"requests": f"ipc://{tmp_path}/r", "changes": f"ipc://{tmp_path}/c"}
    )
    service.daemon = start_daemon(access="required", data=str(tmp_path / "data"), **places)
    stranger = new_key()
    requests, changes = service.daemon.requests, service.daemon.changes
    cases = [
        ({"public_key": stranger.public, "secret_key": stranger.secret}, "does not know the key"),
        ({"server_key": stranger.public}, "has another key than the login's server_key"),
        (None, "lets in only clients with a key"),
    ]
    for other, said in cases:
        login = tmp_path / "none.json" if other is None else service.login("alice", **other)
        login.touch(0o600)
        if other is None:
            login.write_text("{}")
        with (
            Client(requests, login=login, timeout=LONG) as client,
            pytest.raises(Unauthenticated, match=said) as refusal,
        ):
            client.put("k", "v")
        assert refusal.value.details["outcome"] == "none"
        with (
            Subscription(requests, changes, login=login) as subscription,
            pytest.raises(Unauthenticated, match=said),
        ):
            subscription.next(LONG)

        async def ask() -> None:
            async with AsyncClient(requests, login=login, timeout=LONG) as client:  # noqa: B023
                await client.get("k")

        with pytest.raises(Unauthenticated, match=said):
            asyncio.run(ask())


def test_a_key_for_a_daemon_without_access_is_refused_in_words(daemon: Daemon, tmp_path: Path) -> None:
    identities = Identities(tmp_path / "data")
    keys = CurveKeys(new_key().public, *new_key())
    login = identities.write_login(keys, daemon.requests, tmp_path / "login.json")
    with (
        Client(daemon.requests, login=login, timeout=LONG) as client,
        pytest.raises(Unauthenticated, match="takes no keys"),
    ):
        client.get("k")
    with Client(daemon.requests, timeout=LONG) as client:
        assert client.put("k", "v")


def test_a_login_file_that_cannot_be_used_is_named(daemon: Daemon, tmp_path: Path) -> None:
    login = tmp_path / "login.json"
    with pytest.raises(BadRequest, match="there is no login file"):
        Client(daemon.requests, login=login)
    with pytest.raises(TypeError, match="login is the path"):
        Client(daemon.requests, login=5)  # type: ignore[arg-type]
    login.write_text("{}")
    login.chmod(0o644)
    with pytest.raises(NotAllowed, match="chmod 600"):
        Subscription(daemon.requests, daemon.changes, login=login)
    login.chmod(0o600)
    keys = CurveKeys("no key", *new_key())
    Identities(tmp_path).write_login(keys, daemon.requests, login)
    for kind in (Client, Subscription):
        with pytest.raises(BadRequest, match="Z85"):
            kind(daemon.requests, login=login)


def test_a_subscription_whose_key_is_revoked_says_so_and_loses_nothing(start: Callable[..., Service]) -> None:
    service = start(alice=["ro:app/"], carol=["ro:app/"])
    with service.client("root") as root, service.subscription("alice", prefixes=["app/"]) as subscription:
        until_sync(subscription)
        root.put("app/1", "v")
        assert keys_of(subscription, 1) == ["app/1"]
        service.identities.remove("alice")
        assert refusal_of(subscription).code == "unauthenticated"
        with pytest.raises(Unauthenticated, match="no longer"):  # as long as it is asked
            subscription.next(LONG)
        cursor = subscription.cursor
        assert cursor is not None
        root.put("app/2", "v")
        with service.subscription("carol", prefixes=["app/"], since=cursor) as resumed:
            root.put("app/3", "v")
            assert keys_of(resumed, 2) == ["app/2", "app/3"]


def test_a_subscription_whose_grant_is_taken_says_so(start: Callable[..., Service]) -> None:
    service = start(alice=["ro:app/", "ro:other/"])
    with service.client("root") as root, service.subscription("alice", prefixes=["app/"]) as subscription:
        until_sync(subscription)
        service.identities.grant("alice", "ro:other/")
        wait_until(lambda: root.put("app/x", "v") and is_taken_away(subscription), every=0)
        assert subscription.cursor is not None


def test_a_client_whose_key_is_revoked_is_refused_and_another_goes_on(start: Callable[..., Service]) -> None:
    service = start(alice=["all:*"])
    with service.client("alice") as client, service.client("root") as root:
        client.put("k", "v")
        service.identities.remove("alice")

        def is_refused() -> bool:
            try:
                client.get("k")
            except Unauthenticated:
                return True
            return False

        wait_until(is_refused)
        assert root.get("k").value == b"v"


def test_clients_come_back_to_a_daemon_that_was_restarted(start: Callable[..., Service]) -> None:
    service = start(alice=["rw:app/"])
    with service.client("alice") as client, service.subscription("alice", prefixes=["app/"]) as subscription:
        until_sync(subscription)
        client.put("app/1", "v")
        service.daemon.kill()
        service.daemon.start()
        client.put("app/2", "v")
        assert keys_of(subscription, 2) == ["app/1", "app/2"]


def test_a_forked_process_has_the_same_keys(start: Callable[..., Service]) -> None:
    service = start(alice=["rw:app/"])
    with service.client("alice") as client:
        client.put("app/x", "parent")
        pid = os.fork()
        if not pid:
            status = 1
            try:
                client.put("app/x", "child")
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert client.get("app/x").value == b"child"
