"""Whether the sender of a request may do all that it asks for."""

from __future__ import annotations

from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.operations import OPERATIONS
from kvstore_core.wall_clock import now_ms
from kvstore_core.wire import Request
from kvstore_daemon.access.authority import Authority
from kvstore_daemon.requests.pending_request import PendingRequest

_OF_THE_FACADE = ("http:", "facade:")
"""How the names begin by which the facade numbers what others ask."""


def allowed(request: Request, who: Principal) -> Request:
    """The request as it is to be done for ``who``; raises ``not_allowed``, with the index of the op, if one
    of its ops is not granted. Nothing may be done of it before.

    The facade has checked what it asks for. Others number their requests by names of their own: those of two
    identities never meet.
    """
    if who is THE_FACADE:
        return request
    for index, op in enumerate(request.ops):
        who.check_op(op, OPERATIONS[op["op"]].needs, index)
    client = request.client
    if client is None:
        return request
    if client.startswith(_OF_THE_FACADE):
        raise KvError("not_allowed", f"{client!r} is not a 'client' of yours: only the facade has such names")
    return request._replace(client=f"@{who.name}:{client}")  # no facade, and nobody unnamed, begins with @


def has_ended(who: Principal) -> bool:
    """Whether the credential of ``who`` has expired."""
    return who.expires_at is not None and now_ms() >= who.expires_at


def recheck(request: PendingRequest, authority: Authority) -> None:
    """Let the grants of now hold for what is still to be done of ``request``; raises ``unauthenticated`` or
    ``not_allowed`` if they do not allow all of it. Nothing more may be done of it then."""
    who = authority.principal_of(request.peer.user_id)
    if who is THE_FACADE:  # it goes on in the name of the one for whom it asks
        who = request.who
    else:
        for index, op in request.undone():
            who.check_op(op, OPERATIONS[op["op"]].needs, index)
    request.who, request.table = who, authority.table
