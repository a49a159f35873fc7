"""The fixtures, which pytest finds once kvstore is installed. Without a test that asks for one nothing is
started, and nothing but this module is imported."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvstore_client import Client
    from kvstore_contrib.testing.service import TestService


@dataclass(frozen=True)
class KvstoreForTest:
    """The service, for one test."""

    prefix: str
    """A prefix that no other test has, with a slash at its end, removed after it."""
    client: Client
    service: TestService

    @property
    def requests(self) -> str:
        """The daemon's endpoint for requests."""
        return self.service.requests

    @property
    def changes(self) -> str:
        """The daemon's endpoint for changes."""
        return self.service.changes

    @property
    def url(self) -> str:
        """The address of the HTTP facade, which is started when this is first asked for."""
        return self.service.url

    @property
    def location(self) -> str:
        """The address of the prefix, as the backends of kvstore_contrib take it."""
        changes = self.changes.rpartition(":")[2]
        return f"{self.requests.replace('tcp://', 'kvstore://')}/{self.prefix}?changes={changes}"

    def key(self, name: str) -> str:
        """The key for ``name`` below the prefix."""
        return self.prefix + name


class KvstoreClock:
    """The daemon's clock, which goes on by itself and can be moved forward."""

    def __init__(self, service: TestService) -> None:
        self._service = service

    def advance(self, seconds: float) -> None:
        """Move the clock forward. What has expired by then is gone for every read when this returns; its
        ``expire`` events follow within a second. Other tests of this process see the same clock."""
        if seconds < 0:
            raise ValueError("the clock goes forward alone")
        self._service.advance(seconds)


class KvstoreFaults:
    """The network between clients and the service, for HTTP and ZeroMQ alike."""

    def __init__(self, service: TestService) -> None:
        self._service = service

    def drop(self) -> None:
        """Cut every open connection; clients may connect again at once."""
        for link in self._service.links:
            link.drop()

    def stall(self) -> AbstractContextManager[None]:
        """While the block runs nothing gets through: ``with kvstore_faults.stall(): ...``."""
        return self._stalled()

    @contextmanager
    def _stalled(self) -> Iterator[None]:
        with ExitStack() as stack:
            for link in self._service.links:
                stack.enter_context(link.stall())
            yield

    def reset_after(self, size: int) -> None:
        """Cut the connections to each address once, after so many more bytes of answers."""
        for link in self._service.links:
            link.reset_after(size)

    def clear(self) -> None:
        """Take back a reset that has not happened yet."""
        for link in self._service.links:
            link.reset_after(None)


@pytest.fixture(scope="session")
def kvstore_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestService]:
    """The service of this process of tests: started for the first test that needs it, stopped at the end."""
    from kvstore_contrib.testing.service import TestService

    service = TestService(tmp_path_factory.mktemp("kvstore"))
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
def kvstore(kvstore_service: TestService) -> Iterator[KvstoreForTest]:
    """The service with a prefix of the test's own: ``kvstore.client``, ``prefix``, ``location``, ``url``,
    ``requests``, ``changes``."""
    from kvstore_client import Client

    prefix = f"test-{uuid.uuid4().hex}/"
    with Client(kvstore_service.requests, changes=kvstore_service.changes) as client:
        yield KvstoreForTest(prefix, client, kvstore_service)
        client.delete_prefix(prefix)


@pytest.fixture
def kvstore_clock(kvstore_service: TestService) -> KvstoreClock:
    """``kvstore_clock.advance(3600)`` ends what has an hour to live."""
    return KvstoreClock(kvstore_service)


@pytest.fixture
def kvstore_faults(kvstore_service: TestService) -> Iterator[KvstoreFaults]:
    """``drop()``, ``stall()`` and ``reset_after(size)``: what a network does to clients."""
    faults = KvstoreFaults(kvstore_service)
    yield faults
    faults.clear()
