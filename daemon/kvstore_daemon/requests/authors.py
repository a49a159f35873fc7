"""Who makes the changes that a request asks for."""

from __future__ import annotations

from dataclasses import replace

from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.wire import Authors, Request


def authors_of(who: Principal, request: Request) -> Authors:
    """The author of all changes that ``request`` of ``who`` asks for, empty for none; or that of each op.

    Raises ``not_allowed`` if the request names an author and its sender may not.
    """
    if who is THE_FACADE:
        return request.author or ""
    if request.author is not None:
        raise KvError("not_allowed", "'author' is the HTTP facade's to set; leave it out")
    return who.name


def named(who: Principal, authors: Authors) -> Principal:
    """``who``, called as the one for whom the facade asks: for the log of what was done to others."""
    if who is THE_FACADE and authors and isinstance(authors, str):
        return replace(who, name=authors)
    return who
