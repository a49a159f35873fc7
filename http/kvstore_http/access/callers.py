"""Who makes a request: from its credential to a principal (``docs/access.md``, Over HTTP)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote

import falcon

from kvstore_core.access.grants import GrantSet, Need
from kvstore_core.access.identities import AccessTable
from kvstore_core.access.principal import ANONYMOUS, UNRESTRICTED, Principal
from kvstore_core.access.tokens import TOKEN_PATTERN, token_id
from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_core.wall_clock import now_ms
from kvstore_http.access.sessions import (
    HALF_VARIABLE,
    NewSession,
    begin,
    cookies_of,
    is_of_this_site,
    not_a_token,
    session_of,
)
from kvstore_http.access.table_follower import TableFollower
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.protocol.environ import RAW_PATH, RAW_QUERY, STRANGERS_BODY, WHO
from kvstore_http.routes import SUBSCRIBE_PATH, Needs

MAX_KEPT = 4096
"""How many credentials are kept looked up. Only good ones are, so that nobody can push others out."""

MAX_KEPT_CHARACTERS = 512
"""Of a header with one. There may be any number of spaces in it, and each number makes another header."""

MAX_KEPT_SESSIONS = 256
MAX_SESSION_CHARACTERS = 4096
"""Of the cookies with one, of which other services on the host may have some."""

MAX_STRANGERS_BODY = 64 * 1024
"""The largest body that is read of somebody who is not known."""

_BEARER = re.compile(r"bearer +([A-Za-z0-9\-._~+/]+=*)", re.ASCII | re.IGNORECASE)
"""RFC 6750 section 2.1; the scheme has no case (RFC 9110 section 11.1)."""

_DERIVED = re.compile(r"kvd_[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)

_KNOWN = (Need("known"),)
_VARY = "Authorization, Cookie"

Responder = Callable[..., None]
Refreshed = Callable[[Principal], Principal]
"""Gives a principal as of now; raises ``unauthenticated`` if its credential is no longer good."""

log = logging.getLogger("kvstore.http")


class _Undecided(Principal):
    """Who asks while there is no table: nobody can say. Let in where nothing is needed, else told to wait."""

    def refusal(self, need: Need, op: int | None = None) -> KvError:  # noqa: ARG002
        return KvError("unavailable", "the daemon was not reached yet, so nobody can be let in")


UNDECIDED = _Undecided(ANONYMOUS, GrantSet(()))


def everybody(who: Principal) -> Principal:
    """``Refreshed``, while access is off."""
    return who


def nothing() -> None:
    """What is to be done after a change of identities, while access is off."""


class Callers:
    """Finds out who makes each request, and whether the route is open to them.

    A credential that is there but not good is refused everywhere, and counts for nothing less than that:
    nobody becomes anonymous by it.
    """

    def __init__(self, follower: TableFollower, counters: WorkerCounters, server_key: str) -> None:
        self.follower = follower
        self.server_key = server_key
        """The daemon's public key, for those who come in by ZeroMQ."""
        self._counters = counters
        self._known: dict[str, Principal] = {}
        self._sessions: dict[tuple[str, str], Principal] = {}
        """By the cookies of a request and the page's half."""
        self._leak_log = RateLimitedLog(log)
        follower.listeners.extend((self._known.clear, self._sessions.clear))

    # ── routes ──────────────────────────────────────────────────────────────────────────────────

    def guarded(self, responder: Responder, needs: Needs) -> Responder:
        """The responder of a route with ``needs``, for those who may use it. What its operations need is
        asked where they are done."""
        asked = (Need(needs),) if needs in ("monitor", "admin") else _KNOWN
        is_public, has_own_need = needs == "public", needs in ("monitor", "admin", "known")

        def respond(req: falcon.Request, resp: falcon.Response, **params: Any) -> None:
            environ = req.env
            try:
                who = environ[WHO] = self._identified(environ, needs)
                if has_own_need or (who.name == ANONYMOUS and not is_public and who is not UNDECIDED):
                    who.check(asked)
                if STRANGERS_BODY in environ:
                    self._refuse_body_of(who)
                responder(req, resp, **params)
            except KvError as error:
                self.count(error)
                raise
            make_private(resp._headers)  # noqa: SLF001 - falcon's ways to them take longer than all the rest

        return respond

    def _identified(self, environ: dict[str, Any], needs: Needs) -> Principal:
        """Who makes the request. Where nothing is needed nobody waits for the daemon; and to look at how it
        goes (``monitor``) the last known table is good enough, or nobody could while the daemon is away."""
        follower = self.follower
        if follower.is_confirmed or (follower.table is not None and needs in ("public", "monitor")):
            table = follower.table
            assert table is not None  # noqa: S101 - for mypy
        elif needs == "public":
            return UNDECIDED
        else:
            try:
                table = follower.wait()
            except KvError:
                if environ[RAW_PATH] != SUBSCRIBE_PATH:
                    raise
                return UNDECIDED  # the resource has words of its own for an EventSource
        try:
            return self._identify(environ, table, is_public=needs == "public")
        except KvError:
            newer = self._newer_for(_credentials(environ), table)
            if newer is None:
                raise
            return self._identify(environ, newer, is_public=needs == "public")

    def _newer_for(self, credentials: Iterable[str], table: AccessTable) -> AccessTable | None:
        """Another table than ``table``, which may know one of these ``credentials``; None if there is none.
        Asks the daemon, unless it was not heard of lately."""
        if self.follower.is_confirmed and any(map(table.may_know_later, credentials)):
            newer = self.follower.look_again()
            return None if newer is table else newer
        return None

    def begin_session(self, token: str) -> NewSession:
        """A session for whoever has ``token`` (:func:`kvstore_http.access.sessions.begin`)."""
        table = self.follower.wait()
        try:
            return begin(table, token, now_ms())
        except KvError:
            newer = self._newer_for((token,), table)
            if newer is None:
                raise
            return begin(newer, token, now_ms())

    def confirmed(self, environ: dict[str, Any]) -> Principal:
        """Who makes the request, for a public route that has to know; raises ``unavailable`` where nobody can
        say."""
        if self.follower.is_confirmed and environ[WHO] is not UNDECIDED:
            who: Principal = environ[WHO]
            return who
        return self._identify(environ, self.follower.wait(), is_public=True)

    def _identify(self, environ: dict[str, Any], table: AccessTable, *, is_public: bool) -> Principal:
        """Whose credential the request carries, by ``table``; raises ``unauthenticated`` for one that is not
        good. Where there is a token, cookies do not count."""
        header = environ.get("HTTP_AUTHORIZATION")
        if header is not None:
            return self._of_header(header, table)
        if HALF_VARIABLE in environ:
            return self._of_session(environ, table)
        return session_of(environ, table, now_ms(), is_public=is_public) or table.anonymous

    def _of_session(self, environ: dict[str, Any], table: AccessTable) -> Principal:
        now, cookies = now_ms(), environ.get("HTTP_COOKIE", "")
        both = cookies, environ[HALF_VARIABLE]
        who = self._sessions.get(both)
        if who is not None and is_of_this_site(environ) and now < (who.expires_at or 0):
            return who
        who = session_of(environ, table, now)
        assert who is not None  # noqa: S101 - there is a half
        if table is self.follower.table and len(cookies) <= MAX_SESSION_CHARACTERS:
            if len(self._sessions) >= MAX_KEPT_SESSIONS:
                self._sessions.clear()
            self._sessions[both] = who
        return who

    def _of_header(self, header: str, table: AccessTable) -> Principal:
        now = now_ms()
        who = self._known.get(header)
        if who is not None and (who.expires_at is None or now < who.expires_at):
            return who
        found = _BEARER.fullmatch(header)
        if found is None:
            raise KvError("unauthenticated", "send a token as: Authorization: Bearer kv_…", reason="unknown")
        who = table.of_credential(found[1], now)
        if who.is_session:
            raise not_a_token()
        if table is self.follower.table and len(header) <= MAX_KEPT_CHARACTERS:
            if len(self._known) >= MAX_KEPT:
                self._known.clear()
            self._known[header] = who
        return who

    def kept(self, headers: Mapping[str, str]) -> Principal | None:
        """Who makes a request with these headers (as the parser names them) to a route that is ``by_ops``, if
        that is known and holds until the follower's listeners are called; None wherever somebody has to look.
        Cookies are not looked at."""
        table, header = self.follower.table, headers.get("AUTHORIZATION")
        if table is None:
            return None
        who = table.anonymous if header is None else self._known.get(header)
        is_let_in = who is not None and who.expires_at is None and all(map(who.may, _KNOWN))
        return who if is_let_in else None

    def refreshed(self, who: Principal) -> Principal:
        """The same principal as of now, for what takes long; raises ``unauthenticated`` if its credential is
        no longer good, ``unavailable`` if nobody can say."""
        if who is UNRESTRICTED:
            return who
        table = self.follower.table if self.follower.is_confirmed else self.follower.wait()
        assert table is not None  # noqa: S101 - for mypy
        return refreshed_by(table, who)

    def judged(self, who: Principal, needs: Iterable[Need]) -> Principal | KvError:
        """The same principal as of now, as far as that can be told without waiting; or why it may not have
        what it ``needs`` any more."""
        table = self.follower.table
        if table is None:
            return who
        try:
            found = refreshed_by(table, who)
            found.check(needs)
        except KvError as error:
            return error
        return found

    # ── bodies of strangers ─────────────────────────────────────────────────────────────────────

    def is_stranger(self, headers: Mapping[str, str]) -> bool:
        """Whether a large body with these headers (as the parser names them) is not to be read, as far as
        that can be told without waiting."""
        table = self.follower.table
        if table is None:
            return True
        environ = {f"HTTP_{name}": value for name, value in headers.items()}
        try:
            return not _may_write(self._identify(environ, table, is_public=False))
        except KvError:
            return True

    def _refuse_body_of(self, who: Principal) -> None:
        if not _may_write(who):
            raise strangers_body()

    # ── tokens in addresses ─────────────────────────────────────────────────────────────────────

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """As falcon's middleware, before a route is looked for: nobody's address may hold a token."""
        environ = req.env
        path = environ[RAW_PATH]
        if may_hold_token(path) or "%" in path or environ[RAW_QUERY]:
            try:
                self._refuse_token_in(environ)
            except KvError as error:
                self.count(error)
                raise

    def _refuse_token_in(self, environ: dict[str, Any]) -> None:
        """Raise ``unauthenticated`` for an address that holds a token: by now proxies and logs have it. Only
        for one that is known here the log names an id: others can be made up for any."""
        address = f"{environ[RAW_PATH]}?{environ[RAW_QUERY]}"
        if "%" in address:
            address = unquote(address)
        if not may_hold_token(address):
            return
        tokens = [match for match in TOKEN_PATTERN.finditer(address) if token_id(match[0])]
        known = next((match[1] for match in tokens if self._is_known(match[0])), None)
        if known is not None:
            self._leak_log.warning("the token %s stood in an address: rotate it", known)
        elif not tokens and not any(self._is_known(match[0]) for match in _DERIVED.finditer(address)):
            return
        raise KvError(
            "unauthenticated",
            "a token stood in the address, where logs and proxies keep it: rotate it, and send the new one "
            "as Authorization: Bearer kv_…",
            reason="in_address",
        )

    def _is_known(self, text: str) -> bool:
        """Whether this is, or was, a credential here."""
        table = self.follower.table
        try:
            return table is not None and bool(table.of_credential(text, 0))
        except KvError as error:
            return error.details.get("reason") != "unknown"

    # ── refusals ────────────────────────────────────────────────────────────────────────────────

    def count(self, error: KvError) -> None:
        """Count an error that was answered, if it is a refusal."""
        if error.code == "unauthenticated":
            self._counters.access_refused(error.details.setdefault("reason", "unknown"))
        elif error.code == "not_allowed" and "needs" in error.details:
            self._counters.access_refused("not_granted")


def may_hold_token(address: str) -> bool:
    """Whether an address has to be searched for tokens, which nobody's may hold."""
    return "kv_" in address or "kvd_" in address


def strangers_body() -> KvError:
    """Why a large body of somebody who is not known is not read."""
    return KvError(
        "unauthenticated",
        f"a body of more than {MAX_STRANGERS_BODY} bytes, or in chunks, is only read from those who send a "
        "token",
        reason="missing",
    )


def _credentials(environ: dict[str, Any]) -> list[str]:
    """Those by which a request may come in, good or not."""
    header = environ.get("HTTP_AUTHORIZATION")
    if header is None:
        return cookies_of(environ) if HALF_VARIABLE in environ else []
    found = _BEARER.fullmatch(header)
    return [] if found is None else [found[1]]


def refreshed_by(table: AccessTable, who: Principal) -> Principal:
    """``who`` by ``table``, as of now; raises ``unauthenticated``."""
    found = table.refreshed(who, now_ms())
    if found is None:
        raise KvError(
            "unauthenticated", f"this token of {who.name!r} has expired or was revoked", reason="revoked"
        )
    return found


def _may_write(who: Principal) -> bool:
    """Whether somebody's large body is read: of anonymous only where it may store one."""
    return who.name != ANONYMOUS or who.grants.has("write")


def make_private(headers: dict[str, str]) -> None:
    """Keep an answer with these ``headers`` from shared caches: it is for one caller. RFC 9111 section 3.5
    keeps only what answers ``Authorization`` from them, and not what answers a cookie."""
    cache = headers.get("cache-control", "")
    if not cache.startswith("no-store"):
        headers["cache-control"] = f"private, {cache}" if cache else "private"
    vary = headers.get("vary")
    headers["vary"] = f"{vary}, {_VARY}" if vary else _VARY
