"""Whether the sender of a request may do all that it asks for."""

from __future__ import annotations

from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.operations import OPERATIONS
from kvstore_core.wire import Request

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
