"""``--stale``: what the daemon has, while it cannot hear what others have written. The engine is LMDB's,
which the test lets lag."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.command_line import CommandLine
from support.lagging import NO_QUORUM, LaggingDaemon


@pytest.fixture(scope="module")
def shared_daemon(_shared_starter: Any) -> LaggingDaemon:
    daemon: LaggingDaemon = _shared_starter.start(LaggingDaemon, {}, None)
    return daemon


@pytest.fixture(autouse=True)
def daemon(shared_daemon: LaggingDaemon, kvstore: CommandLine) -> Iterator[LaggingDaemon]:
    """A daemon that has two keys, and cannot hear of more."""
    kvstore.out("put", "k", "v")
    kvstore.out("put", "m", "w")
    shared_daemon.order("catch_up", "fail")
    yield shared_daemon
    shared_daemon.order("catch_up", "current")
    shared_daemon.order("age", 0)


READS = {
    "a key": ["get", "k"],
    "a record": ["get", "k", "--json"],
    "keys": ["get", "k", "m"],
    "everything": ["get", "--all"],
    "the past": ["get", "k", "--revision", "1"],
    "list": ["list"],
    "long": ["list", "--long"],
    "count": ["list", "--count"],
    "level": ["ls"],
    "digest": ["digest"],
    "history": ["history", "k"],
    "log": ["log"],
    "blame": ["blame"],
}


@pytest.mark.parametrize("name", READS)
def test_each_command_that_reads_has_a_stale_form(
    daemon: LaggingDaemon, kvstore: CommandLine, name: str
) -> None:
    refused = kvstore(*READS[name], "--request-timeout", "500ms")
    assert (refused.returncode, refused.stdout) == (6, b"")
    assert NO_QUORUM.encode() in refused.stderr
    assert b"'stale'" in refused.stderr
    stale = kvstore(*READS[name], "--stale")
    assert (stale.returncode, stale.stderr) == (0, b""), "current as it happens"
    daemon.order("age", 1234)
    old = kvstore(*READS[name], "--stale")
    assert (old.returncode, old.stdout) == (0, stale.stdout)
    assert old.stderr == b"kvstore: this may be 1.234 s old\n"
    daemon.order("catch_up", "current")
    assert kvstore.out(*READS[name]) == stale.stdout


def test_a_key_that_is_missing_there_may_be_elsewhere(daemon: LaggingDaemon, kvstore: CommandLine) -> None:
    daemon.order("age", 1234)
    missing = kvstore("get", "none", "--stale")
    assert missing.returncode == 3
    assert b"1.234 s old" in missing.stderr
