"""What the application is built from, as it sees them: the way to the daemon, and the changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kvstore_core.errors import KvError
from kvstore_core.wire import Reply


class Link(Protocol):
    """The way to the daemon. Calls wait for the answer, and only the calling request waits."""

    epoch: str
    """The store's epoch, as of the last reply or heartbeat."""

    head: int
    """The highest revision that is known to be committed. A read that starts now sees it."""

    def call(self, op: dict[str, Any], value: bytes | None = None) -> dict[str, Any]:
        """The result of one op; raises the KvError with which it failed. Sets the op's ``size``."""

    def request(
        self,
        ops: Sequence[dict[str, Any]],
        values: Sequence[bytes] = (),
        *,
        atomic: bool = False,
        idempotency_key: str | None = None,
    ) -> list[dict[str, Any] | KvError]:
        """The results of ops that are sent together; raises the KvError that refused all of them.

        ``values`` are those of the ops that have one and say its ``size``, in their order.
        """

    def ask(self, ops: Sequence[dict[str, Any]]) -> Reply:
        """As :meth:`request`, with the revision of the oldest snapshot that was read."""


def read_one(link: Link, op: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The result of a reading op and the revision of its snapshot; raises what it failed with."""
    reply = link.ask([op])
    result = reply.results[0]
    if isinstance(result, KvError):
        raise result
    return result, reply.revision


class Feed(Protocol):
    """The changes as they happen."""

    @property
    def silent_seconds(self) -> float:
        """For how long nothing was heard of them; the daemon tells something every second."""

    def wait_for_change(self, key: str, since: int, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until ``key`` may have changed after revision ``since``.

        False when the time is up, and earlier when the service stops.
        """
