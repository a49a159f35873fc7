"""``/v1/digest``: the digest of all records, of a prefix or a range, as of one revision."""

from __future__ import annotations

from typing import Any, NamedTuple

import falcon

from kvstore_core.access.grants import KeyRange
from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.digest import SetHash, record_hash
from kvstore_core.errors import KvError
from kvstore_core.model import Cursor
from kvstore_core.wire import Reply
from kvstore_http import routes
from kvstore_http.access.callers import Refreshed
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.stale_reads import Reads, reads_of, say_age
from kvstore_http.protocol.bodies import send_fresh_json
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.query_params import END, MIN_REVISION, PREFIX, START, Parameter, read_query

ATTEMPTS = 3
"""How often a range is read before the answer is ``too_busy``. Each attempt follows the changes beside it; it
fails only if the log was trimmed up to them, or the store replaced."""


_OF_OP: tuple[Parameter[Any], ...] = (PREFIX, START, END, MIN_REVISION)
"""The parameters that are fields of the op."""


class _SummedPart(NamedTuple):
    """What a range has in it up to where it was read, all as of the position."""

    records: SetHash
    total: int
    at: Cursor


class DigestResource:
    """``/v1/digest``."""

    def __init__(self, daemon: DaemonClient, refreshed: Refreshed) -> None:
        self._daemon = daemon
        self._refreshed = refreshed

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        query = read_query(req.env, routes.DIGEST)
        op: dict[str, Any] = {"op": "digest"}
        for parameter in _OF_OP:
            choice = query.get(parameter)
            if choice is not None:
                op[parameter.name] = choice
        reads = reads_of(self._daemon, query, req.env)
        records, count, at = self._whole(reads, op, req.env[WHO])
        body = {"digest": records.hexdigest(), "count": count, "revision": at.revision, "epoch": at.epoch}
        say_age(req.env, resp)
        send_fresh_json(req, resp, body)

    def _whole(self, reads: Reads, op: dict[str, Any], who: Principal) -> _SummedPart:
        for _ in range(ATTEMPTS):
            found = self._attempt(reads, op, who)
            if found is not None:
                return found
        message = "the keys change faster than their digest can be read; ask for a part of them"
        raise KvError("too_busy", message)

    def _attempt(self, reads: Reads, op: dict[str, Any], who: Principal) -> _SummedPart | None:
        """Page after page. What changed before a page in those before it is added to them, so that all of it
        is as of one revision; None where the log does not say what changed."""
        reply = reads.request([op], who=self._refreshed(who))
        page = _result(reply)
        at = Cursor(reply.revision, reply.epoch)
        found = _SummedPart(SetHash(int(page["digest"], 16)), page["count"], at)
        while page["cursor"] is not None:
            read = KeyRange.common(op.get("prefix", ""), op.get("start", ""), page["next"])
            reply = reads.request([{**op, "cursor": page["cursor"]}], who=self._refreshed(who))
            page = _result(reply)
            at = Cursor(reply.revision, reply.epoch)
            caught_up = _caught_up(reads, found, read, at)
            if caught_up is None:
                return None
            total = caught_up.records.total + int(page["digest"], 16)
            found = _SummedPart(SetHash(total), caught_up.total + page["count"], at)
        return found


def _result(reply: Reply) -> dict[str, Any]:
    result = reply.results[0]
    if isinstance(result, KvError):
        raise result
    return result


def _caught_up(reads: Reads, part: _SummedPart, of: KeyRange, to: Cursor) -> _SummedPart | None:
    """The part of the range as it was at a later position; None where the log does not say that."""
    records, count, at = part
    while at != to:
        if at.epoch != to.epoch or at.revision > to.revision:
            return None
        try:
            # what it tells goes into the digest alone, of keys that the caller may read and list
            op = {"op": "events", "since": str(at), "previous": True}
            page = _result(reads.request([op], who=THE_FACADE))
        except KvError as error:
            if error.code == "cursor_expired":
                return None
            raise
        for event in page["events"]:
            if event["revision"] <= to.revision and of.covers(KeyRange.of_key(event["key"])):
                if event["previous_revision"] and "previous" not in event:
                    return None
                count += _take(records, event)
        at = at._replace(revision=min(page["next"], to.revision))
    return _SummedPart(records, count, at)


def _take(records: SetHash, event: dict[str, Any]) -> int:
    """Take an event into a digest; returns how many records more there are."""
    key, previous, is_put = event["key"].encode(), event.get("previous"), event["op"] == "put"
    old = b"" if previous is None else record_hash(key, previous["revision"], previous["value"])
    new = record_hash(key, event["revision"], event["value"]) if is_put else b""
    records.replace(old, new)
    return int(is_put) - int(previous is not None)
