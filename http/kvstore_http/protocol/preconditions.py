"""``If-Match`` and ``If-None-Match`` (RFC 9110 section 13): entity tags are revisions in quotes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from kvstore_core.errors import KvError
from kvstore_core.model import MAX_REVISION
from kvstore_http.backend.daemon_client import DaemonClient

ATTEMPTS = 32
"""How often a read-then-write is tried against other writers before the answer is ``too_busy``."""
MAX_IDEMPOTENCY_KEY = 100
"""The most characters of an Idempotency-Key. The daemon keeps it with a prefix and a step in 128 bytes."""

_TAG = r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"'
_TAGS = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
"""RFC 9110 section 5.6.1.2: elements may be empty. No two parts that stand side by side can take the same
character, or a long list that ends badly would be tried in as many ways as there are to divide it."""
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
    """What a request asks of the revision that the key has when the request is applied.

    A missing key has revision 0, which matches no tag and not ``*`` either.
    """

    match: Tags | None
    none_match: Tags | None

    @property
    def revision(self) -> int | None:
        """The one revision that fulfils the condition (0: the key is missing), None if it is not
        that simple."""
        if self.none_match is None and self.match is not None and len(self.match.strong) == 1:
            return next(iter(self.match.strong))
        if self.match is None and self.none_match is not None and self.none_match.any:
            return 0
        return None

    def holds(self, revision: int) -> bool:
        """Whether a key at ``revision`` fulfils the condition."""
        # If-Match compares strongly, If-None-Match weakly (RFC 9110 section 8.8.3.2)
        if self.match is not None and not (revision in self.match.strong or (self.match.any and revision)):
            return False
        return self.none_match is None or not is_listed(revision, self.none_match)

    def check(self, revision: int) -> None:
        """Raise ``condition_failed`` unless a key at ``revision`` fulfils the condition."""
        if not self.holds(revision):
            state = f"the key has revision {revision}" if revision else "the key is missing"
            raise KvError("condition_failed", state, revision=revision)


def is_listed(revision: int, tags: Tags) -> bool:
    """Whether a key at ``revision`` matches ``tags``, weak ones included."""
    return revision != 0 and (tags.any or revision in tags.strong or revision in tags.weak)


def condition_of(environ: dict[str, Any]) -> Condition | None:
    """The request's condition, None where it has none; raises ``bad_request`` for a condition on the
    time, which cannot tell two writes of one second apart. Beside If-Match that one does not count
    (RFC 9110 section 13.1.4)."""
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
    """Raise ``bad_request`` for a condition in a header that has no one key to hold for."""
    for name in ("If-Match", "If-None-Match", "If-Unmodified-Since"):
        if "HTTP_" + name.upper().replace("-", "_") in environ:
            raise KvError("bad_request", f"{name} is not taken here: {instead}", header=name)


def write(
    daemon: DaemonClient, environ: dict[str, Any], op: dict[str, Any], value: bytes | None = None
) -> dict[str, Any]:
    """Apply one writing op under the request's condition and idempotency key; the op's result.

    A condition that no single revision answers is resolved by reading first.
    """
    condition = condition_of(environ)
    idempotency_key = environ.get("HTTP_IDEMPOTENCY_KEY")
    if condition is not None:
        if condition.revision is None:
            reason = 'beside it, If-Match takes one entity tag and If-None-Match only "*"'
            refuse_idempotency_key(idempotency_key, reason)
            return read_then_write(daemon, op["key"], condition, lambda _record: (op, value))
        op["if_revision"] = condition.revision
    return send(daemon, op, value, idempotency_key)


def send(
    daemon: DaemonClient, op: dict[str, Any], value: bytes | None, idempotency_key: str | None, step: int = 0
) -> dict[str, Any]:
    """The result of one writing op, applied once however often it is sent under ``idempotency_key``.

    ``step`` tells apart the writes that one request under one key consists of.
    """
    if idempotency_key is None:
        return daemon.call(op, value)
    sized = op if value is None else {**op, "size": len(value)}
    result = send_once(daemon, [sized], [] if value is None else [value], idempotency_key, step=step)[0]
    if isinstance(result, KvError):
        raise result
    return result


def send_once(
    daemon: DaemonClient,
    ops: list[dict[str, Any]],
    values: list[bytes],
    idempotency_key: str,
    *,
    atomic: bool = False,
    step: int = 0,
) -> list[dict[str, Any] | KvError]:
    """The results of a request that is applied once however often it is sent under ``idempotency_key``."""
    check_idempotency_key(idempotency_key)
    # no key that a client can send holds a control character
    name = f"{idempotency_key}\n{step}" if step else idempotency_key
    try:
        return daemon.request(ops, values, atomic=atomic, idempotency_key=name).results
    except KvError as error:
        if error.code != "sequence_reused":
            raise
        raise KvError(
            error.code, "this Idempotency-Key was used for another request; a new request takes a new one"
        ) from error


def check_idempotency_key(key: str) -> None:
    """Raise ``bad_request`` for what is no idempotency key."""
    if not (key.isascii() and key.isprintable() and 0 < len(key) <= MAX_IDEMPOTENCY_KEY):
        raise KvError(
            "bad_request", f"Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"
        )


def check_write(environ: dict[str, Any]) -> None:
    """Raise ``bad_request`` for a condition or an idempotency key that is malformed."""
    condition_of(environ)
    idempotency_key = environ.get("HTTP_IDEMPOTENCY_KEY")
    if idempotency_key is not None:
        check_idempotency_key(idempotency_key)


def refuse_idempotency_key(key: str | None, reason: str) -> None:
    """Raise ``bad_request`` for a request that carries an idempotency key and cannot keep its promise."""
    if key is not None:
        raise KvError("bad_request", f"Idempotency-Key is not taken here: {reason}", header="Idempotency-Key")


Prepare = Callable[[dict[str, Any] | None], tuple[dict[str, Any], bytes | None]]


def read_then_write(
    daemon: DaemonClient, key: str, condition: Condition | None, prepare: Prepare
) -> dict[str, Any]:
    """Read the key, let ``prepare`` make an op and its value from the record (None: missing), and
    write on condition that the key stayed as it was read; again when somebody wrote between."""
    for _ in range(ATTEMPTS):
        record = current(daemon, key)
        revision = 0 if record is None else record["revision"]
        if condition is not None:
            condition.check(revision)
        op, value = prepare(record)
        try:
            return daemon.call({**op, "if_revision": revision}, value)
        except KvError as error:
            if error.code != "condition_failed":
                raise
    raise KvError("too_busy", f"others wrote the key between each of {ATTEMPTS} reads and writes")


def current(daemon: DaemonClient, key: str) -> dict[str, Any] | None:
    """The key's record, None if it is missing."""
    try:
        return daemon.call({"op": "get", "key": key})
    except KvError as error:
        if error.code != "not_found":
            raise
        return None
