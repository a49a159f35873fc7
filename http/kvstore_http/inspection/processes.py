"""Asks all workers and the daemon the same; what cannot be heard in time is named."""

from __future__ import annotations

from typing import Any, NamedTuple

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.inspection.siblings import Siblings


class Heard(NamedTuple):
    """What the ``workers`` answered, and the ``daemon``, None for nothing; and who is ``unheard``."""

    workers: list[dict[str, Any]]
    daemon: dict[str, Any] | None
    unheard: list[str]


class Processes:
    """The workers of this facade, and the daemon behind it."""

    def __init__(self, siblings: Siblings, daemon: DaemonClient) -> None:
        self.siblings = siblings
        self.daemon = daemon

    def ask(self, question: str, who: Principal, **details: Any) -> Heard:
        """What all of them say; blocks the greenlet. The daemon is asked by the operation that is called as
        the ``question``; raises what it refuses."""
        gathered = self.siblings.ask(question, **details)
        unheard = [f"worker {number}" for number in gathered.unheard]
        found = None
        try:
            found = self.daemon.call({"op": question, **details}, who=who)
        except KvError as error:
            if not error.row.is_temporary:
                raise
            unheard.append("daemon")
        return Heard(list(gathered.answers.values()), found, unheard)
