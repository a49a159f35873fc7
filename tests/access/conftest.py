"""A service with access on, shared by all tests of access that keep to identities and keys of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.protected import Protected
from support.servers import Daemon


@pytest.fixture(scope="session")
def _protected_daemon(_session_starter: Any) -> Daemon:
    daemon: Daemon = _session_starter.start(Daemon, {"access": "required"}, None)
    return daemon


@pytest.fixture(scope="session")
def protected_daemon(_protected_daemon: Daemon) -> Iterator[Protected]:
    """The daemon alone."""
    protected = Protected(_protected_daemon)
    yield protected
    protected.close()


@pytest.fixture(scope="session")
def protected(_protected_daemon: Daemon, _session_starter: Any) -> Iterator[Protected]:
    """The same daemon, and a facade with one worker."""
    key = _protected_daemon.data / "facade.key"
    facade = _session_starter.start_facade(_protected_daemon, facade_key_file=str(key))
    protected = Protected(_protected_daemon, facade)
    yield protected
    protected.close()
