"""Query parameters: declared once, checked strictly, read by type.

An unknown parameter is an error that names the known ones: a misspelt ``tll`` must not store a value for
ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from kvstore_core.access.identities import is_public_key
from kvstore_core.access.tokens import is_token_id
from kvstore_core.errors import KvError
from kvstore_core.limits import (
    INT64,
    MAX_DELIMITER_BYTES,
    MAX_FILTERS,
    MAX_KEY_BYTES,
    MAX_MOMENT,
    MAX_PAGE,
    MAX_REPEATED,
    MAX_REVISION,
    MAX_TTL_SECONDS,
)
from kvstore_core.model import Cursor, check_key
from kvstore_core.operations import EVENT_OPS
from kvstore_core.predicates import GRAMMAR, MAX_PREDICATE_BYTES, parse_predicate
from kvstore_core.units import DURATION_PATTERN, parse_flag, split_duration
from kvstore_core.wall_clock import now_ms
from kvstore_http.protocol.environ import RAW_QUERY
from kvstore_http.protocol.raw_router import percent_decoded

T = TypeVar("T")

MAX_WAIT_SECONDS = 600
DEFAULT_LIMIT = 100
MIN_SAMPLE_MS, MAX_SAMPLE_MS = 10, 3_600_000
MAX_CACHE_SECONDS = 366 * 24 * 3600

USUAL_CHECKS = ("daemon", "writes", "disk", "store", "log", "clock", "connections", "feed", "streams")
CHECKS = (*USUAL_CHECKS, "cluster", "mirror", "certificate", "access")
"""The checks of ``/readyz``: the last four are made where a cluster keeps the store (two), with TLS, and with
access."""


@dataclass(frozen=True, slots=True)
class Parameter(Generic[T]):
    """One query parameter. ``parse`` raises ValueError for a text that is not ``must_be``, or a
    KvError. What ``tells_value`` has a stored value in it, or part of one, and is in no log."""

    name: str
    parse: Callable[[str], T]
    must_be: str
    meaning: str
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "string"})
    many: bool = False
    tells_value: bool = False

    def read(self, text: str) -> T:
        """The parsed value; raises ``bad_request`` saying what it must be."""
        try:
            return self.parse(text)
        except ValueError as error:
            message = f"{self.name} must be {self.must_be}, not {text[:MAX_REPEATED]!r}"
            raise KvError("bad_request", message, parameter=self.name) from error


Known = Mapping[str, Parameter[Any]]


def known(*parameters: Parameter[Any]) -> Known:
    """The parameters that a request may carry, by name."""
    return {parameter.name: parameter for parameter in parameters}


_ELSEWHERE = {
    "if_revision": '; the revision that a key must have is a header: If-Match: "7"',
    "if_absent": "; that a key must not be there is a header: If-None-Match: *",
}
"""What some look for among the parameters, and where it is."""


class Query:
    """The parameters of one request, decoded and not yet parsed."""

    __slots__ = ("_texts",)

    def __init__(self, texts: dict[str, list[str]]) -> None:
        self._texts = texts

    def __contains__(self, parameter: Parameter[Any]) -> bool:
        return parameter.name in self._texts

    def get(self, parameter: Parameter[T]) -> T | None:
        """The parameter's value, None where the request does not carry it."""
        texts = self._texts.get(parameter.name)
        return None if texts is None else parameter.read(texts[0])

    def all(self, parameter: Parameter[T]) -> list[T]:
        """The values of a parameter that may be given several times, in their order."""
        return [parameter.read(text) for text in self._texts.get(parameter.name, ())]

    def required(self, parameter: Parameter[T]) -> T:
        """The parameter's value; raises ``bad_request`` where the request does not carry it."""
        if parameter.name not in self._texts:
            message = f"the parameter {parameter.name} is missing; it is {parameter.must_be}"
            raise KvError("bad_request", message, parameter=parameter.name)
        return parameter.read(self._texts[parameter.name][0])

    def expect(self, parameters: Known) -> Query:
        """Return itself; raises ``bad_request`` if it has a parameter that is not among ``parameters``, or
        has one twice that may be given once."""
        for name, texts in self._texts.items():
            if name not in parameters:
                takes = ", ".join(parameters) or "none"
                message = f"unknown parameter {name!r}; known: {takes}{_ELSEWHERE.get(name, '')}"
                raise KvError("bad_request", message, parameter=name)
            if len(texts) > 1 and not parameters[name].many:
                raise KvError("bad_request", f"the parameter {name!r} is given twice", parameter=name)
        return self


EMPTY = Query({})
"""The query of every request without one, to be compared by identity: that is what reading a key does."""


def read_query(environ: dict[str, Any], parameters: Known | None = None) -> Query:
    """The request's parameters, which must be among ``parameters``; with None they are not checked until the
    caller knows what to ``expect``."""
    raw = environ[RAW_QUERY]
    if not raw:
        return EMPTY
    texts: dict[str, list[str]] = {}
    for pair in filter(None, raw.split("&")):
        raw_name, _, raw_text = pair.partition("=")
        name = _decoded(raw_name, "a parameter's name")
        texts.setdefault(name, []).append(_decoded(raw_text, name))
    query = Query(texts)
    return query if parameters is None else query.expect(parameters)


def read_keyed_query(environ: dict[str, Any], key: str | None, parameters: Known) -> tuple[str, Query]:
    """The key, which is in the query where the path has none (``key`` None), and the parameters beside it."""
    if key is not None:
        return key, read_query(environ, parameters)
    query = read_query(environ, {KEY.name: KEY, **parameters})
    return query.required(KEY), query


def _decoded(raw: str, name: str) -> str:
    try:
        return percent_decoded(raw.replace("+", " "))
    except ValueError as error:
        code = "invalid_key" if name == KEY.name else "bad_request"
        raise KvError(code, f"{name} is not percent-encoded UTF-8: {error}", parameter=name) from error


def filters_of(query: Query, parameter: Parameter[str]) -> list[str]:
    """The prefixes or keys that are given; raises ``bad_request`` for more than an op may name."""
    texts = query.all(parameter)
    if len(texts) > MAX_FILTERS:
        message = f"{parameter.name} is given {len(texts)} times; the limit is {MAX_FILTERS}"
        raise KvError("bad_request", message, parameter=parameter.name, limit=MAX_FILTERS)
    return texts


# ── parsers ──────────────────────────────────────────────────────────────────────────────────────

_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)


def parse_duration(text: str) -> float:
    """``30``, ``30s``, ``500ms``, ``5m``, ``1.5h``, ``7d`` in seconds; raises ValueError."""
    number, unit = split_duration(text)
    return float(number) * unit / 1000


def parse_ttl(text: str) -> float:
    """A time to live in seconds; raises ValueError outside of 1 ms to 100 years."""
    seconds = parse_duration(text)
    if not 0.001 <= seconds <= MAX_TTL_SECONDS:
        raise ValueError(text)
    return seconds


def parse_moment(text: str) -> int:
    """A date and time of RFC 3339 in milliseconds since the epoch; raises ValueError, also for what an offset
    or rounding puts beyond the year 9999."""
    # the plus of an offset is read as a space if the query was not encoded
    match = _MOMENT.fullmatch(text.replace(" ", "+") if " " not in text[:11] else text)
    if match is None:
        raise ValueError(text)
    moment = round(datetime.fromisoformat(match[0]).timestamp() * 1000)
    if not 0 < moment <= MAX_MOMENT:
        raise ValueError(text)
    return moment


def _parse_wait(text: str) -> float:
    seconds = parse_duration(text)
    if seconds > MAX_WAIT_SECONDS:
        raise ValueError(text)
    return seconds


def _parse_cache(text: str) -> int:
    seconds = parse_duration(text)
    if not 1 <= seconds <= MAX_CACHE_SECONDS:
        raise ValueError(text)
    return int(seconds)


def _parse_flag(text: str) -> bool:
    return text == "" or parse_flag(text)


def _parse_format(text: str) -> str:
    if text not in ("raw", "json"):
        raise ValueError(text)
    return text


def _parse_key(text: str) -> str:
    check_key(text)
    return text


def _parse_bound(text: str) -> str:
    if "\0" in text or len(text.encode()) > MAX_KEY_BYTES:
        raise ValueError(text)
    return text


def _parse_delimiter(text: str) -> str:
    if not 0 < len(text.encode()) <= MAX_DELIMITER_BYTES:
        raise ValueError(text)
    return _parse_bound(text)


def _parse_prefix(text: str) -> str:
    if not text:
        raise ValueError(text)
    return _parse_bound(text)


def _parse_guard(text: str) -> dict[str, Any]:
    """The op that checks it. A key may hold any character, also the one that ends it here."""
    key, _, revision = text.rpartition("@")
    if not key or not revision.isascii() or not revision.isdigit() or len(revision) > 19:
        raise ValueError(text)
    check_key(key)
    if int(revision) > MAX_REVISION:
        raise ValueError(text)
    return {"op": "check", "key": key, "if_revision": int(revision)}


def _parse_since(text: str) -> Cursor:
    """A cursor; a revision alone is a cursor without an epoch."""
    if text.isascii() and text.isdigit() and int(text) <= MAX_REVISION:
        return Cursor(int(text), "")
    return Cursor.parse(text)


class SinceTime(NamedTuple):
    """A time to begin from, in milliseconds since 1970."""

    milliseconds: int


def _parse_begin(text: str) -> Cursor | SinceTime:
    """What :func:`_parse_since` takes, a date, or a duration ago."""
    if text.endswith("-ago"):
        ago = parse_duration(text.removesuffix("-ago")) * 1000
        return SinceTime(round(max(0.0, now_ms() - ago)))
    if "T" in text:
        return SinceTime(parse_moment(text))
    return _parse_since(text)


def _parse_keep(text: str) -> float:
    seconds = parse_duration(text)
    if seconds > MAX_TTL_SECONDS:
        raise ValueError(text)
    return seconds


def _parse_delivery(text: str) -> bool:
    if text not in ("all", "latest"):
        raise ValueError(text)
    return text == "latest"


def _parse_sample(text: str) -> int:
    milliseconds = parse_duration(text) * 1000
    if not MIN_SAMPLE_MS <= milliseconds <= MAX_SAMPLE_MS:
        raise ValueError(text)
    return round(milliseconds)


def _parse_token_id(text: str) -> str:
    if not is_token_id(text):
        raise ValueError(text)
    return text


def _parse_public_key(text: str) -> str:
    if not is_public_key(text):
        raise ValueError(text)
    return text


def _some_of(choices: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if not all(name in choices for name in names):
            raise ValueError(text)
        return names

    return parse


# ── the parameters ───────────────────────────────────────────────────────────────────────────────

_BOUND = f"a text of at most {MAX_KEY_BYTES} bytes without NUL"
_DURATION_SCHEMA = {"type": "string", "pattern": f"^{DURATION_PATTERN}$", "examples": ["30s"]}


def _flag(name: str, meaning: str) -> Parameter[bool]:
    return Parameter(name, _parse_flag, "1 or 0", meaning, {"type": "boolean"})


def _integer(name: str, low: int, high: int, must_be: str, meaning: str) -> Parameter[int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 20):
            raise ValueError(text)
        number = int(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    schema = {"type": "integer", "format": "int64", "minimum": low, "maximum": high}
    return Parameter(name, parse, must_be, meaning, schema)


KEY = Parameter(
    "key",
    _parse_key,
    f"a text of 1 to {MAX_KEY_BYTES} bytes of UTF-8 without NUL",
    "the key, where a proxy would rewrite it in the path",
)
TTL = Parameter(
    "ttl",
    parse_ttl,
    "a time such as 30, 30s, 500ms, 5m, 2h or 7d, from 1ms to 100 years",
    "after this time the key is gone; a number without a unit is seconds",
    _DURATION_SCHEMA,
)
KEEP_TTL = _flag("keep_ttl", "1: the key expires when it would have")
GUARD = Parameter(
    "guard",
    _parse_guard,
    "KEY@REVISION, such as locks/deploy@41; the revision is 0 for a key that must not exist",
    "only if this other key has this revision when the write is done",
    many=True,
)
IF_VALUE = Parameter(
    "if_value", str, "a text", "only if this is the key's value, all of it", tells_value=True
)
EXPIRES_AT = Parameter(
    "expires_at",
    parse_moment,
    "a date such as 2026-01-31T12:00:00.000Z, from 1970 to the end of the year 9999 in UTC",
    "from this time on the key is gone",
    {"type": "string", "format": "date-time"},
)
FORMAT = Parameter(
    "format",
    _parse_format,
    "raw or json",
    "json: the record as a JSON object; raw (the default): the value's bytes",
    {"type": "string", "enum": ["raw", "json"]},
)
REVISION = _integer(
    "revision", 1, MAX_REVISION, "a revision", "the value as it was right after this revision"
)
WAIT = Parameter(
    "wait",
    _parse_wait,
    f"a time such as 30s, at most {MAX_WAIT_SECONDS}s",
    "wait up to this long for the key to change",
    _DURATION_SCHEMA,
)
SINCE = Parameter(
    "since",
    _parse_since,
    "a revision, 0 for a missing key, or a cursor",
    "with wait: the revision you know; a later change is answered at once",
)
UNTIL = Parameter(
    "until",
    parse_predicate,
    GRAMMAR,
    "with wait: until the key fulfils this",
    {"type": "string", "maxLength": MAX_PREDICATE_BYTES, "examples": ["exists", '/state == "done"']},
    tells_value=True,
)
PREFIX = Parameter("prefix", _parse_bound, _BOUND, "only keys that begin with this")
DELETED_PREFIX = Parameter(
    "prefix",
    _parse_prefix,
    f"a text of 1 to {MAX_KEY_BYTES} bytes without NUL; an empty one would delete everything",
    "delete every key that begins with this",
)
START = Parameter("start", _parse_bound, _BOUND, "only keys from this one on, in byte order")
END = Parameter("end", _parse_bound, _BOUND, "only keys before this one, in byte order")
LIMIT = _integer(
    "limit",
    1,
    MAX_PAGE,
    f"a whole number from 1 to {MAX_PAGE}",
    "the most items of a page; as NDJSON, of the whole answer",
)
SHOWN = replace(LIMIT, meaning="the most that are shown; 1000 if not given")
TOTAL = _integer("limit", 1, MAX_REVISION, "a whole number from 1 on", LIMIT.meaning)
CURSOR = Parameter("cursor", str, "a cursor", "where the page before this one ended")
KEYS = _flag("keys", "1: leave the values out, and say how many bytes they have")
COUNT = _flag("count", "1: only count the keys")
DELIMITER = Parameter(
    "delimiter",
    _parse_delimiter,
    f"a text of 1 to {MAX_DELIMITER_BYTES} bytes without NUL",
    "one level: keys that have this after the prefix are shown by what they begin with up to there",
)
REVERSE = _flag("reverse", "1: from the last key to the first")
COUNTS = _flag("counts", "1, with delimiter: also how many keys are below each prefix")
VALUES = _flag("values", "0: leave the values out")
INLINE = _flag("json", "1: values that are JSON are given as such, in value_json")
STALE = _flag(
    "stale", "1: what the daemon has, at once, without asking the others that share the store for what is new"
)
AGE_HEADER = "x-kvstore-age"
"""What an answer with STALE has: how many milliseconds ago what it shows was last known to be current. Not
Age (RFC 9111 section 5.1), which has whole seconds and to which caches add theirs."""
MIN_REVISION = _integer(
    "min_revision", 1, MAX_REVISION, "a revision", "what is shown is at least as new as this revision"
)
BEFORE = _integer("before", 1, MAX_REVISION, "a revision", "only events with a lower revision")
BY = replace(
    _integer("by", -INT64, INT64 - 1, "a signed 64-bit integer", "what to add; 1 by default"),
    tells_value=True,
)
VERBOSE = _flag("verbose", "also what was checked, and what was found")
EXCLUDE = Parameter(
    "exclude",
    _some_of(CHECKS),
    f"names out of {', '.join(CHECKS)}, with commas",
    "do not make these checks",
    many=True,
)

KEEP = Parameter(
    "keep",
    _parse_keep,
    "a time such as 1h, or 0",
    "how long the other tokens stay good; not at all if not given",
    _DURATION_SCHEMA,
)
TOKEN_ID = Parameter("id", _parse_token_id, "the id of a token, of 8 characters", "only this token")
PUBLIC_KEY = Parameter(
    "public_key", _parse_public_key, "a CURVE public key, as 40 characters of Z85", "only this key"
)

# ── those of the event stream alone ──────────────────────────────────────────────────────────────

STREAM_PREFIX = replace(PREFIX, many=True)
STREAM_KEY = replace(KEY, meaning="only this key", many=True)
BEGIN = "a cursor, a revision, a time ago such as 10m-ago, or a date such as 2026-01-31T12:00:00Z"
STREAM_SINCE = Parameter(
    "since", _parse_begin, BEGIN, "continue after this; the Last-Event-ID header overrides it"
)
EVENT_ID = Parameter(
    "Last-Event-ID", _parse_since, "a cursor or a revision", "the id of the last event that was seen"
)
LAST_EVENT_IDS: tuple[Parameter[str], ...] = tuple(
    Parameter(name, str, EVENT_ID.must_be, "like the header, for clients that cannot set it", many=True)
    for name in ("lastEventId", "last-event-id")
)
SNAPSHOT = _flag("snapshot", "1: start with the current records")
OPS = Parameter(
    "ops",
    _some_of(EVENT_OPS),
    f"names out of {', '.join(EVENT_OPS)}, with commas",
    "only these kinds of events",
)
CHANGES_SINCE = Parameter(
    "since",
    _parse_begin,
    BEGIN,
    "the changes after this; without it the page is empty, and its cursor is now",
)
CHANGES_LIMIT = replace(LIMIT, meaning="the most events of a page, but all of a revision; 1000 if not given")
CHANGES_WAIT = replace(WAIT, meaning="where there is no change yet, wait up to this long for one")
CACHE = Parameter(
    "cache",
    _parse_cache,
    "a time such as 1h, from 1s to 1 year",
    "how long caches may keep the page, if it is full and since is a cursor",
    _DURATION_SCHEMA,
)
PREVIOUS = _flag("prev", "1: add the record that was replaced")
DELIVER = Parameter(
    "deliver",
    _parse_delivery,
    "all or latest",
    "latest: where newer changes of a key come before older ones could be sent, only the newest is",
    {"type": "string", "enum": ["all", "latest"]},
)
SAMPLE = Parameter(
    "sample",
    _parse_sample,
    "a time such as 1s or 500ms, from 10ms to 1h",
    "as deliver=latest, and at most one change of each key in this time: the first at once, then the newest",
    _DURATION_SCHEMA,
)
