"""Who makes the changes that a request asks for."""

from __future__ import annotations

from kvstore_core.errors import KvError
from kvstore_core.wire import Authors, Request
from kvstore_daemon.peer_limits.peer import Peer


def authors_of(peer: Peer, request: Request) -> Authors:  # noqa: ARG001 - nobody is known yet
    """The author of all changes that ``request`` of ``peer`` asks for, empty for none; or that of each op.

    Raises ``not_allowed`` if the request names an author and its sender may not.
    """
    if request.author is not None:
        raise KvError("not_allowed", "'author' is the HTTP facade's to set; leave it out")
    return ""
