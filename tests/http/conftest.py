"""Fixtures of the HTTP tests: a service for a whole module, and a connection to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from support.servers import Service
from support.session import Session

_numbers = itertools.count()


@pytest.fixture(scope="module")
def session(shared_service: Service) -> Iterator[Session]:
    """A connection to a service that the tests of a module share."""
    session = Session(shared_service.url)
    yield session
    session.close()


@pytest.fixture
def own(service: Service) -> Iterator[Session]:
    """A connection to a service of the test's own, with an empty store."""
    session = Session(service.url)
    yield session
    session.close()


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"key-{next(_numbers)}"
