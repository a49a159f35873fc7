"""The one table of routes: what each takes and answers.

The query of a request is checked against it, ``/openapi.json`` and the index at ``/`` are made from it, and
tests compare it with what :mod:`kvstore_http.app` mounts and with ``docs/http.md``. To add a route, write its
row here, a resource, its line in ``app.create_app``, and its section in ``docs/http.md``; a new form of body
needs a schema in :mod:`kvstore_http.resources.service.openapi`. HEAD goes with every GET, OPTIONS with
everything; ``/ui/`` also has the files of the page beside it.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from kvstore_core.media_types import HTML, JSON, MERGE_PATCH, NDJSON, SSE, TEXT
from kvstore_http.protocol import query_params as q
from kvstore_http.protocol.preconditions import MESSAGE_HEADER
from kvstore_http.protocol.query_params import Known, Parameter, known

ANYTHING = "*/*"
SUBSCRIBE_PATH = "/v1/subscribe"
OPENMETRICS = "application/openmetrics-text"
KEY_OPS = {"/v1/incr/{key}": "incr", "/v1/touch/{key}": "touch", "/v1/persist/{key}": "persist"}
"""The op that each is, on one key. The parameters of these routes are called as the fields of their ops."""

# ── what a query may carry ───────────────────────────────────────────────────────────────────────

NOTHING = known()
GET_KEY = known(q.FORMAT, q.INLINE, q.REVISION, q.WAIT, q.SINCE, q.UNTIL, q.STALE, q.MIN_REVISION)
CONDITIONS = known(q.GUARD, q.IF_VALUE)
PUT_KEY = {**known(q.TTL, q.KEEP_TTL, q.EXPIRES_AT), **CONDITIONS}
POST_KEY = known(q.TTL, q.EXPIRES_AT, q.GUARD)
PATCH_KEY = known(q.TTL, q.GUARD)
LIST = known(
    q.PREFIX,
    q.START,
    q.END,
    q.LIMIT,
    q.CURSOR,
    q.KEYS,
    q.COUNT,
    q.DELIMITER,
    q.REVERSE,
    q.COUNTS,
    q.INLINE,
    q.STALE,
    q.MIN_REVISION,
)
DIGEST = known(q.PREFIX, q.START, q.END, q.STALE, q.MIN_REVISION)
DELETE_PREFIX = known(q.DELETED_PREFIX)
JUST_KEY = known(q.KEY)
HISTORY = known(q.LIMIT, q.CURSOR, q.BEFORE, q.VALUES, q.INLINE, q.STALE, q.MIN_REVISION)
HISTORY_OF_PREFIX = {**known(q.PREFIX), **HISTORY}
BATCH = known(q.INLINE, q.STALE)
CHANGES = known(
    q.CHANGES_SINCE,
    q.STREAM_PREFIX,
    q.STREAM_KEY,
    q.OPS,
    q.CHANGES_LIMIT,
    q.CHANGES_WAIT,
    q.VALUES,
    q.PREVIOUS,
    q.INLINE,
    q.STALE,
    q.CACHE,
)
ROOT = known(q.KEY, q.STALE)
ALL = known(q.STALE)
READYZ = known(q.VERBOSE, q.EXCLUDE)
ROTATE = known(q.KEEP)
SHOWN = known(q.SHOWN)
REVOKE = known(q.TOKEN_ID, q.PUBLIC_KEY)
SUBSCRIBE = known(
    q.STREAM_PREFIX,
    q.STREAM_KEY,
    q.STREAM_SINCE,
    *q.LAST_EVENT_IDS,
    q.SNAPSHOT,
    q.OPS,
    q.VALUES,
    q.PREVIOUS,
    q.INLINE,
    q.DELIVER,
    q.SAMPLE,
)


class Header(NamedTuple):
    """A request header that an endpoint understands."""

    name: str
    meaning: str


IF_MATCH = Header("If-Match", 'only if the key has this revision: `"7"`, a list of those, or `*` (it exists)')
IF_NONE_MATCH = Header("If-None-Match", "`*`: only if the key does not exist; or tags that it must not have")
IF_NONE_MATCH_READ = Header("If-None-Match", "the revision you have: 304 while the key still has it")
IF_NONE_MATCH_FILE = Header("If-None-Match", "the tag of the copy you have: 304 while it is good")
IF_NONE_MATCH_PAGE = Header("If-None-Match", "the tag of the page that you have: 304 if it is the same")
IF_MODIFIED_SINCE = Header("If-Modified-Since", "304 unless the value is newer, by whole seconds")
RANGE = Header("Range", "one range of the value's bytes")
IF_RANGE = Header("If-Range", "the revision that the range is meant for")
IF_RANGE_FILE = Header("If-Range", "the ETag of the file that the range is meant for; else all of it comes")
IDEMPOTENCY_KEY = Header(
    "Idempotency-Key", "the request is applied once, however often it is sent with the same key"
)
LAST_EVENT_ID = Header("Last-Event-ID", "resume after the event with this id")

MESSAGE = Header(
    MESSAGE_HEADER, "why: up to 200 bytes of UTF-8 in one line, percent-encoded or not; kept with the change"
)

_CONDITIONS = (IF_MATCH, IF_NONE_MATCH)
_WRITING = (*_CONDITIONS, IDEMPOTENCY_KEY, MESSAGE)


class ResponseSpec(NamedTuple):
    """A response that is no error: its status, and the schema of its body by media type (none: no body)."""

    status: int
    meaning: str
    content: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default, never changed


Needs = Literal["public", "known", "by_ops", "monitor", "admin"]
"""What an endpoint asks of its caller, before anything else is looked at: nothing; a credential, or any grant
as anonymous; that too, and then what its ops need; a verb. What the ops need (``kvstore_core.operations``) is
asked wherever they are sent, also of a ``public`` endpoint."""


class Endpoint(NamedTuple):
    """One method at one path.

    ``required`` are the parameters of ``query`` that a request must have, ``body`` the schema of its body by
    media type. ``errors`` are the codes of this endpoint; those of :data:`ANYWHERE` can come from all.
    ``link`` is its name in the index at ``/``, and the query that the index shows with it.
    """

    method: str
    path: str
    needs: Needs
    summary: str
    responses: tuple[ResponseSpec, ...]
    query: Known = NOTHING
    headers: tuple[Header, ...] = ()
    body: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default, never changed
    errors: tuple[str, ...] = ()
    required: tuple[Parameter[Any], ...] = ()
    link: tuple[str, str] | None = None
    deprecated: bool = False


ANYWHERE = (
    "bad_request",
    "unauthenticated",
    "not_allowed",
    "not_acceptable",
    "internal",
    "damaged",
    "too_busy",
    "unavailable",
    "timed_out",
)

_VALUE = ResponseSpec(200, "the value, with its own media type", {ANYTHING: "Value", JSON: "Record"})
_GONE = ResponseSpec(204, "what was waited for: there is no such key")
_UNCHANGED = ResponseSpec(304, "still as you know it")
_PART = ResponseSpec(206, "the range that was asked for", {ANYTHING: "Value"})
_STORED = (
    ResponseSpec(200, "stored", {JSON: "Written"}),
    ResponseSpec(201, "stored; the key was not there before", {JSON: "Written"}),
)
_COUNTED = ResponseSpec(200, "the new value", {JSON: "Counted"})
_RECORD_WRITTEN = ResponseSpec(200, "done", {JSON: "Written"})

_GET_ERRORS = ("invalid_key", "not_found", "revision_gone", "invalid_cursor", "condition_failed")
_WRITE_ERRORS = ("invalid_key", "condition_failed", "sequence_reused", "store_full", "request_too_large")
_BODY_ERRORS = ("value_too_large", "unsupported_media_type")
_PUT_ERRORS = (*_WRITE_ERRORS, *_BODY_ERRORS)
_PATCH_ERRORS = (*_PUT_ERRORS, "not_json")
_IDENTITY_ERRORS = ("not_found", "condition_failed", "unsupported_media_type")
_MISSING_ERRORS = (*_WRITE_ERRORS, "not_found")


def _in_query(endpoint: Endpoint, summary: str) -> Endpoint:
    """The same with the key in the query, for proxies that rewrite paths."""
    path, query = endpoint.path.removesuffix("/{key}"), {**JUST_KEY, **endpoint.query}
    return endpoint._replace(path=path, summary=summary, query=query, required=(q.KEY,), link=None)


_PUT = Endpoint(
    "PUT",
    "/v1/kv/{key}",
    "by_ops",
    "Store the body under a key, with its Content-Type",
    _STORED,
    PUT_KEY,
    _WRITING,
    {ANYTHING: "Value"},
    _PUT_ERRORS,
)
_POST = Endpoint(
    "POST",
    "/v1/kv/{key}",
    "by_ops",
    "Store the body under a key that begins with this and ends in a number of its own",
    (ResponseSpec(201, "stored; Location and the body name the key", {JSON: "Written"}),),
    POST_KEY,
    (IDEMPOTENCY_KEY, MESSAGE),
    {ANYTHING: "Value"},
    _PUT_ERRORS,
)
_PATCH = Endpoint(
    "PATCH",
    "/v1/kv/{key}",
    "by_ops",
    "Merge a patch into a JSON value",
    _STORED,
    PATCH_KEY,
    (*_CONDITIONS, MESSAGE),
    {MERGE_PATCH: "Value"},
    _PATCH_ERRORS,
)
_HISTORY = Endpoint(
    "GET",
    "/v1/history/{key}",
    "by_ops",
    "A key's events, newest first, as far as the log goes",
    (ResponseSpec(200, "a page of events", {JSON: "History"}),),
    HISTORY,
    errors=("invalid_key", "not_found", "invalid_cursor", "condition_failed"),
    link=("history", ""),
)
_POST_SUBSCRIBE = Endpoint(
    "POST",
    SUBSCRIBE_PATH,
    "by_ops",
    "Every change as it happens: what is asked for is in the body, where it would make an address too long",
    (ResponseSpec(200, "a stream that does not end", {SSE: "Event", NDJSON: "Event"}),),
    NOTHING,
    (LAST_EVENT_ID,),
    {JSON: "Subscription"},
    ("invalid_key", "invalid_cursor", "request_too_large", "unsupported_media_type"),
)
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "GET",
        "/v1/kv/{key}",
        "by_ops",
        "Read a key, now, as of a revision, or once it changes or fulfils a condition",
        (_VALUE, _GONE, _PART, _UNCHANGED),
        GET_KEY,
        (IF_NONE_MATCH_READ, IF_MODIFIED_SINCE, RANGE, IF_RANGE),
        errors=_GET_ERRORS,
        link=("key", ""),
    ),
    _PUT,
    _POST,
    _PATCH,
    Endpoint(
        "DELETE",
        "/v1/kv/{key}",
        "by_ops",
        "Delete a key",
        (ResponseSpec(200, "deleted", {JSON: "Deleted"}),),
        CONDITIONS,
        _WRITING,
        errors=_MISSING_ERRORS,
    ),
    Endpoint(
        "GET",
        "/v1/kv",
        "by_ops",
        "List keys by prefix or range; or, with key, read that one",
        (
            ResponseSpec(
                200,
                "a page, a count, or everything as lines",
                {JSON: "Page", NDJSON: "Entry", ANYTHING: "Value"},
            ),
            _GONE,
            _PART,
            _UNCHANGED,
        ),
        {**LIST, **JUST_KEY, **GET_KEY},
        (IF_NONE_MATCH_READ, IF_MODIFIED_SINCE, RANGE, IF_RANGE),
        errors=_GET_ERRORS,
        link=("list", "?prefix="),
    ),
    _in_query(_PUT, "Store the body under ?key="),
    _in_query(_POST, "Store the body under a key that begins with ?key= and ends in a number of its own"),
    _in_query(_PATCH, "Merge a patch into the JSON value of ?key="),
    Endpoint(
        "DELETE",
        "/v1/kv",
        "by_ops",
        "Delete everything that begins with prefix; or, with key, that one",
        (ResponseSpec(200, "deleted", {JSON: "Deleted"}),),
        {**DELETE_PREFIX, **JUST_KEY, **CONDITIONS},
        _WRITING,
        errors=_MISSING_ERRORS,
    ),
    Endpoint(
        "POST",
        "/v1/batch",
        "by_ops",
        "Many operations in one request, each on its own or all or none",
        (ResponseSpec(200, "a result for each operation, in order", {JSON: "BatchResults"}),),
        BATCH,
        (IDEMPOTENCY_KEY, MESSAGE),
        {JSON: "Batch"},
        (
            *_MISSING_ERRORS,
            *_BODY_ERRORS,
            "unknown_operation",
            "not_an_integer",
            "out_of_range",
        ),
        link=("batch", ""),
    ),
    Endpoint(
        "POST",
        "/v1/incr/{key}",
        "by_ops",
        "Add to a decimal integer; a missing key counts from 0",
        (_COUNTED,),
        {**known(q.BY), **CONDITIONS},
        _WRITING,
        errors=(*_WRITE_ERRORS, "not_an_integer", "out_of_range"),
    ),
    Endpoint(
        "POST",
        "/v1/touch/{key}",
        "by_ops",
        "Give a key a new TTL, counted from now",
        (_RECORD_WRITTEN,),
        {**known(q.TTL), **CONDITIONS},
        _WRITING,
        errors=_MISSING_ERRORS,
        required=(q.TTL,),
    ),
    Endpoint(
        "POST",
        "/v1/persist/{key}",
        "by_ops",
        "Take a key's TTL away",
        (_RECORD_WRITTEN,),
        CONDITIONS,
        _WRITING,
        errors=_MISSING_ERRORS,
    ),
    _HISTORY,
    Endpoint(
        "GET",
        "/v1/history",
        "by_ops",
        "The events of all keys that begin with prefix, newest first; or, with key, of that one",
        _HISTORY.responses,
        {**HISTORY_OF_PREFIX, **JUST_KEY},
        errors=_HISTORY.errors,
    ),
    Endpoint(
        "GET",
        "/v1/changes",
        "by_ops",
        "A page of the changes after a cursor, oldest first; or the first of them once there is one",
        (
            ResponseSpec(
                200,
                "a page; as lines its events, and then the rest of it in a line of its own",
                {JSON: "Changes", NDJSON: "ChangesLine"},
            ),
            ResponseSpec(304, "the page that you have"),
        ),
        CHANGES,
        (IF_NONE_MATCH_PAGE,),
        errors=("invalid_key", "invalid_cursor", "cursor_expired"),
        link=("changes", ""),
    ),
    Endpoint(
        "GET",
        "/v1/digest",
        "by_ops",
        "The digest of all records, of a prefix or of a range, by which a copy proves that it is equal",
        (ResponseSpec(200, "the digest, as of one revision", {JSON: "Digest"}),),
        DIGEST,
        errors=("condition_failed",),
        link=("digest", ""),
    ),
    Endpoint(
        "GET",
        SUBSCRIBE_PATH,
        "by_ops",
        "Every change as it happens",
        (ResponseSpec(200, "a stream that does not end", {SSE: "Event", NDJSON: "Event"}),),
        SUBSCRIBE,
        (LAST_EVENT_ID,),
        errors=("invalid_key", "invalid_cursor"),
        link=("subscribe", ""),
    ),
    _POST_SUBSCRIBE,
    _POST_SUBSCRIBE._replace(method="QUERY", summary="The same by QUERY, which says that nothing is changed"),
    Endpoint(
        "GET",
        "/v1/status",
        "known",
        "The state of the daemon",
        (ResponseSpec(200, "its state", {JSON: "Status"}),),
        link=("status", ""),
    ),
    Endpoint(
        "GET",
        "/v1/whoami",
        "public",
        "Who asks, and what they may do",
        (ResponseSpec(200, "the identity and its grants; anonymous without a token", {JSON: "Caller"}),),
        link=("whoami", ""),
    ),
    Endpoint(
        "POST",
        "/v1/narrow",
        "known",
        "Derive a token that may less, and for a shorter time",
        (ResponseSpec(201, "the token, which is shown only here", {JSON: "Narrowed"}),),
        body={JSON: "Narrowing"},
        errors=("unsupported_media_type",),
    ),
    Endpoint(
        "GET",
        "/v1/tokens",
        "admin",
        "All identities, without secrets",
        (ResponseSpec(200, "the identities", {JSON: "Identities"}),),
    ),
    Endpoint(
        "POST",
        "/v1/tokens",
        "admin",
        "Make an identity with a token",
        (ResponseSpec(201, "the identity, and the token, which is shown only here", {JSON: "Token"}),),
        body={JSON: "NewIdentity"},
        errors=_IDENTITY_ERRORS,
    ),
    Endpoint(
        "GET",
        "/v1/tokens/{name}",
        "admin",
        "One identity",
        (ResponseSpec(200, "the identity", {JSON: "Identity"}),),
        errors=("not_found",),
    ),
    Endpoint(
        "PATCH",
        "/v1/tokens/{name}",
        "admin",
        "Change what an identity may do, and until when",
        (ResponseSpec(200, "the identity as it is now", {JSON: "Identity"}),),
        body={JSON: "GrantChange"},
        errors=_IDENTITY_ERRORS,
    ),
    Endpoint(
        "DELETE",
        "/v1/tokens/{name}",
        "admin",
        "Revoke an identity, or one of its tokens or keys",
        (ResponseSpec(200, "what is left of it, or that it is gone", {JSON: "Object"}),),
        REVOKE,
        errors=("not_found",),
    ),
    Endpoint(
        "POST",
        "/v1/tokens/{name}/rotate",
        "admin",
        "Make another token of an identity; the others end",
        (ResponseSpec(201, "the identity, and the token, which is shown only here", {JSON: "Token"}),),
        ROTATE,
        body={JSON: "NewToken"},
        errors=_IDENTITY_ERRORS,
    ),
    Endpoint(
        "POST",
        "/v1/tokens/{name}/keys",
        "admin",
        "Let an identity in by a CURVE key, over ZeroMQ",
        (ResponseSpec(201, "the identity, and the public key of the daemon", {JSON: "Key"}),),
        body={JSON: "NewKey"},
        errors=_IDENTITY_ERRORS,
    ),
    Endpoint(
        "GET",
        "/v1/subscribers",
        "admin",
        "Who is subscribed, over HTTP and over ZeroMQ, and how much waits for each",
        (ResponseSpec(200, "those for whom most waits first", {JSON: "Subscribers"}),),
        SHOWN,
    ),
    Endpoint(
        "DELETE",
        "/v1/subscribers/{id}",
        "admin",
        "End a stream or a native subscription, whose client may come back",
        (ResponseSpec(200, "it has ended", {JSON: "Kicked"}),),
        errors=("not_found",),
    ),
    Endpoint(
        "GET",
        "/v1/backups",
        "admin",
        "The backup that the daemon keeps, made or not",
        (ResponseSpec(200, "none, or one", {JSON: "Backups"}),),
    ),
    Endpoint(
        "POST",
        "/v1/backups",
        "admin",
        "Make a backup of the store, as it is at one revision",
        (ResponseSpec(201, "it is made, or being made; Location is where it can be read", {JSON: "Backup"}),),
        headers=(IDEMPOTENCY_KEY,),
        errors=("backup_exists", "not_found", "store_full"),
    ),
    Endpoint(
        "GET",
        "/v1/backups/{id}",
        "admin",
        "Read a backup, or the rest of it",
        (
            ResponseSpec(200, "the file", {ANYTHING: "Value"}),
            ResponseSpec(206, "the range that was asked for", {ANYTHING: "Value"}),
        ),
        headers=(RANGE._replace(meaning="one range of the file's bytes"), IF_RANGE_FILE),
        errors=("not_found", "range_not_satisfiable", "store_full"),
    ),
    Endpoint(
        "DELETE",
        "/v1/backups/{id}",
        "admin",
        "Remove a backup, made or not",
        (ResponseSpec(200, "removed", {JSON: "Object"}),),
        errors=("not_found",),
    ),
    Endpoint(
        "GET",
        "/v1/slow",
        "admin",
        "The last requests that took long, over HTTP and at the daemon",
        (ResponseSpec(200, "the newest first", {JSON: "SlowRequests"}),),
        SHOWN,
    ),
    Endpoint(
        "POST",
        "/v1/session",
        "public",
        "Log in the page at /ui/, with a token",
        (ResponseSpec(200, "the page's half of the session; the other is a cookie", {JSON: "Session"}),),
        body={JSON: "Login"},
        errors=("unsupported_media_type", "request_too_large"),
    ),
    Endpoint(
        "DELETE",
        "/v1/session",
        "public",
        "Log the page out",
        (ResponseSpec(204, "the cookie is taken away"),),
    ),
    Endpoint(
        "GET",
        "/livez",
        "public",
        "Whether the facade runs",
        (ResponseSpec(200, "it does", {JSON: "Health"}),),
    ),
    Endpoint(
        "GET",
        "/readyz",
        "public",
        "Whether the service can do its work",
        (ResponseSpec(200, "it can", {JSON: "Health", TEXT: "Lines"}),),
        READYZ,
    ),
    Endpoint(
        "GET",
        "/metrics",
        "monitor",
        "What all workers and the daemon count, for Prometheus",
        (
            ResponseSpec(
                200, "the metrics; also while the daemon is away", {TEXT: "Metrics", OPENMETRICS: "Metrics"}
            ),
        ),
    ),
    Endpoint(
        "GET",
        "/openapi.json",
        "public",
        "This description",
        (ResponseSpec(200, "an OpenAPI 3.1 document", {JSON: "Object"}),),
        link=("description", ""),
    ),
    Endpoint(
        "GET",
        "/ui/",
        "public",
        "A page for browsers, to look at the store and change it",
        (ResponseSpec(200, "the page", {HTML: "Value"}), _UNCHANGED),
        NOTHING,
        (IF_NONE_MATCH_FILE,),
        link=("page", ""),
    ),
    Endpoint(
        "GET",
        "/",
        "public",
        "Where to go from here; with key, its value as text",
        (
            ResponseSpec(200, "links, or the value", {JSON: "Object", TEXT: "Value"}),
            ResponseSpec(303, "without key, to a browser: the page is at /ui/"),
        ),
        ROOT,
        errors=("invalid_key", "not_found"),
    ),
    Endpoint(
        "PUT",
        "/",
        "by_ops",
        "Store a text: the body is {key, value}",
        (ResponseSpec(200, "a line of text", {TEXT: "Value"}),),
        NOTHING,
        (IDEMPOTENCY_KEY, MESSAGE),
        {JSON: "Pair"},
        (*_WRITE_ERRORS, "value_too_large"),
        deprecated=True,
    ),
    Endpoint(
        "GET",
        "/all",
        "by_ops",
        "All pairs as one JSON object",
        (ResponseSpec(200, "values by key", {JSON: "Object"}),),
        ALL,
        deprecated=True,
    ),
)


def paths() -> dict[str, list[Endpoint]]:
    """The endpoints by path, in the table's order."""
    by_path: dict[str, list[Endpoint]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, []).append(endpoint)
    return by_path


def methods_of(endpoints: list[Endpoint]) -> tuple[str, ...]:
    """The methods that a path takes, HEAD and OPTIONS included."""
    named = [endpoint.method for endpoint in endpoints]
    return tuple(sorted({*named, "OPTIONS", *(("HEAD",) if "GET" in named else ())}))
