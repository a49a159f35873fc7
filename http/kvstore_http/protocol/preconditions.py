"""``If-Match`` and ``If-None-Match`` (RFC 9110 section 13), whose entity tags are revisions in quotes;
``Idempotency-Key``; and ``X-Kvstore-Message``."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_REVISION
from kvstore_core.operations import MESSAGE, is_message
from kvstore_http.protocol.raw_router import percent_decoded

MAX_IDEMPOTENCY_KEY = 100
"""The most characters of an Idempotency-Key. The daemon keeps it with a prefix and a step in 128 bytes."""

MESSAGE_HEADER = "X-Kvstore-Message"

_TAG = r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"'
_TAGS = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
"""RFC 9110 section 5.6.1.2: elements may be empty. No two neighbouring parts can take the same character, or
a long list that ends badly would be tried in every way to divide it."""
_ONE_TAG = re.compile(_TAG)
_REVISION = re.compile("[1-9][0-9]{0,18}", re.ASCII)


def etag(revision: int) -> str:
    """The strong entity tag of a key's state at ``revision``."""
    return f'"{revision}"'


class Tags(NamedTuple):
    """A list of entity tags, or ``*``. Tags that are no revision match nothing and are dropped."""

    any: bool
    strong: frozenset[int] = frozenset()
    weak: frozenset[int] = frozenset()


def parse_tags(text: str, header: str) -> Tags:
    """The tags in a header's ``text``; raises ``bad_request`` for anything else."""
    if text.strip(" \t") == "*":
        return Tags(any=True)
    if _TAGS.fullmatch(text) is None:
        raise KvError(
            "bad_request",
            f'{header} must be * or entity tags, a revision in double quotes each, such as "7"',
            header=header,
        )
    strong: set[int] = set()
    weak: set[int] = set()
    for is_weak, opaque in _ONE_TAG.findall(text):
        if _REVISION.fullmatch(opaque) and int(opaque) <= MAX_REVISION:
            (weak if is_weak else strong).add(int(opaque))
    return Tags(False, frozenset(strong), frozenset(weak))


class Condition(NamedTuple):
    """What a request requires of the key's revision when it is applied.

    A missing key has revision 0, which matches neither a tag nor ``*``.
    """

    match: Tags | None
    none_match: Tags | None

    @property
    def revision(self) -> int | None:
        """The one revision that fulfils the condition (0: the key is missing), None if there are several."""
        if self.none_match is None and self.match is not None and len(self.match.strong) == 1:
            return next(iter(self.match.strong))
        if self.match is None and self.none_match is not None and self.none_match.any:
            return 0
        return None

    def check(self, key: str, revision: int) -> None:
        """Raise ``condition_failed`` unless ``key``, at ``revision``, fulfils the condition."""
        match, none_match = self
        # If-Match compares strongly, If-None-Match weakly (RFC 9110 section 8.8.3.2)
        fails = match is not None and not (revision in match.strong or (match.any and revision))
        if fails or (none_match is not None and is_listed(revision, none_match)):
            state = f"is at revision {revision}" if revision else "does not exist"
            raise KvError("condition_failed", f"the key {key!r} {state}", revision=revision)


def is_listed(revision: int, tags: Tags) -> bool:
    """Whether a key at ``revision`` matches ``tags``, weak ones included."""
    return revision != 0 and (tags.any or revision in tags.strong or revision in tags.weak)


def condition_of(environ: dict[str, Any]) -> Condition | None:
    """The request's condition, None where it has none. Raises ``bad_request`` for one on the time, which
    cannot tell two writes of one second apart; beside If-Match it is ignored (RFC 9110 section 13.1.4)."""
    if "HTTP_IF_UNMODIFIED_SINCE" in environ and "HTTP_IF_MATCH" not in environ:
        raise KvError(
            "bad_request",
            "If-Unmodified-Since is not taken: a second may see many writes; use If-Match with the ETag",
            header="If-Unmodified-Since",
        )
    match, none_match = environ.get("HTTP_IF_MATCH"), environ.get("HTTP_IF_NONE_MATCH")
    if match is None and none_match is None:
        return None
    return Condition(
        None if match is None else parse_tags(match, "If-Match"),
        None if none_match is None else parse_tags(none_match, "If-None-Match"),
    )


def refuse_conditions(environ: dict[str, Any], instead: str) -> None:
    """Raise ``bad_request`` for a condition in a header, where the request is not about one key."""
    for name in ("If-Match", "If-None-Match", "If-Unmodified-Since"):
        if "HTTP_" + name.upper().replace("-", "_") in environ:
            raise KvError("bad_request", f"{name} is not taken here: {instead}", header=name)


def check_write(environ: dict[str, Any]) -> None:
    """Raise ``bad_request`` for a condition, an idempotency key or a message that is malformed."""
    condition_of(environ)
    idempotency_key_of(environ)
    message_of(environ)


def idempotency_key_of(environ: dict[str, Any]) -> str | None:
    """The request's ``Idempotency-Key``, None without one; raises ``bad_request`` for a malformed one."""
    key: str | None = environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is None or (key.isascii() and key.isprintable() and 0 < len(key) <= MAX_IDEMPOTENCY_KEY):
        return key
    raise KvError(
        "bad_request", f"Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
    )


def message_of(environ: dict[str, Any]) -> str | None:
    """What ``X-Kvstore-Message`` says, None without one. It is UTF-8, percent-encoded or not, since headers
    are meant to be ASCII and shells write UTF-8. Raises ``bad_request`` for what is no message."""
    raw: str | None = environ.get("HTTP_X_KVSTORE_MESSAGE")
    if raw is None:
        return None
    try:
        message = percent_decoded(raw)
    except ValueError as error:
        raise KvError(
            "bad_request", f"{MESSAGE_HEADER} is not percent-encoded UTF-8: {error}", header=MESSAGE_HEADER
        ) from error
    if not is_message(message):
        raise KvError("bad_request", f"{MESSAGE_HEADER} must be {MESSAGE}", header=MESSAGE_HEADER)
    return message


def refuse_idempotency_key(environ: dict[str, Any], reason: str) -> None:
    """Raise ``bad_request`` for a request that carries an idempotency key and cannot keep its promise."""
    if "HTTP_IDEMPOTENCY_KEY" in environ:
        raise KvError("bad_request", f"Idempotency-Key is not taken here: {reason}", header="Idempotency-Key")
