"""From the raw request target to the route and the key.

A key may hold any character, even ``/`` and ``%``, so it is decoded once, here, from the target as the client
sent it. PATH_INFO will not do: servers decode it before it is split, and waitress also strips slashes from
its front.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import falcon
from falcon.routing import CompiledRouter

from kvstore_core.errors import KvError
from kvstore_core.model import check_key
from kvstore_http.protocol.environ import RAW_PATH, ROUTE

_NOT_ENCODED = re.compile("%(?![0-9A-Fa-f]{2})")

Found = tuple[object, dict[str, Any], dict[str, Any], str | None]


def percent_decoded(raw: str) -> str:
    """The text of ``raw`` (in WSGI's form: bytes as latin-1), with every ``%XX`` decoded once.

    Raises ValueError for a ``%`` without two hexadecimal digits and for bytes that are not UTF-8.
    """
    if "%" not in raw:
        return raw if raw.isascii() else raw.encode("latin-1").decode()
    if _NOT_ENCODED.search(raw):
        raise ValueError("a % is not followed by two hexadecimal digits; write it as %25")
    return unquote_to_bytes(raw.encode("latin-1")).decode()


def decoded_key(raw: str) -> str:
    """The key in a path; raises ``invalid_key``."""
    try:
        key = percent_decoded(raw)
    except ValueError as error:
        raise KvError("invalid_key", f"the key in the path is not percent-encoded UTF-8: {error}") from error
    check_key(key)
    return key


def _decoded_name(raw: str, what: str) -> str:
    """The name or id in a path, which may be nobody's; raises ``bad_request``."""
    try:
        return percent_decoded(raw)
    except ValueError as error:
        message = f"the {what} in the path is not percent-encoded UTF-8: {error}"
        raise KvError("bad_request", message) from error


class _Route(NamedTuple):
    resource: object
    methods: dict[str, Any]
    template: str

    def found(self, req: falcon.Request, params: dict[str, Any]) -> Found:
        if req.method not in self.methods:
            allow = sorted(self.methods)
            raise KvError(
                "method_not_allowed", f"{req.method} is not taken here; {', '.join(allow)} are", allow=allow
            )
        return self.resource, self.methods, params, self.template

    @property
    def parameter(self) -> str:
        """What the responder calls the part of the path that differs."""
        return self.template.partition("{")[2].partition("}")[0]


class RawPathRouter(CompiledRouter):
    """Falcon's router interface over dictionaries: one look-up for a fixed path, or one for ``/v1/GROUP/``
    with everything behind it as the key. Where a group has names instead, an action may come behind the name.

    Falcon's compiled router splits the decoded path at its slashes, so the key would be lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fixed: dict[str, _Route] = {}
        self._keyed: dict[str, _Route] = {}
        self._named: dict[str, dict[str, _Route]] = {}

    def mount(self, template: str, resource: object, methods: dict[str, Any]) -> None:
        """Answer ``template`` (which may end in ``{key}``, or in ``{name}`` and ``{name}/ACTION``, or another
        word for name) by ``methods``, responders by method name."""
        route = _Route(resource, methods, template)
        group, _, rest = template.partition("{")
        if not rest:
            self._fixed[template] = route
        elif route.parameter == "key":
            self._keyed[group] = route
        else:
            self._named.setdefault(group, {})[rest.partition("}")[2]] = route

    def find(self, uri: str, req: falcon.Request | None = None) -> Found | None:  # noqa: ARG002
        assert req is not None  # noqa: S101 - falcon always passes it
        path: str = req.env[RAW_PATH]
        route = self._fixed.get(path)
        if route is not None:
            req.env[ROUTE] = path
            return route.found(req, {})
        end = path.find("/", len("/v1/")) + 1
        route = self._keyed.get(path[:end])
        if route is None:
            return self._find_named(path[:end], path[end:], req)
        req.env[ROUTE] = route.template
        return route.found(req, {"key": decoded_key(path[end:])})

    def _find_named(self, group: str, rest: str, req: falcon.Request) -> Found | None:
        name, slash, action = rest.partition("/")
        route = self._named.get(group, {}).get(slash + action)
        if route is None:
            return None
        req.env[ROUTE] = route.template
        return route.found(req, {route.parameter: _decoded_name(name, route.parameter)})
