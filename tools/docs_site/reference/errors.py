"""The errors: what each code means on every surface, and what to do."""

from __future__ import annotations

from kvstore_cli.docs_tables import table
from kvstore_core.errors import ERRORS, ErrorRow, KvError

_HEAD = """\
# Errors

Every error has a code, which never changes its meaning and is the same over HTTP, over ZeroMQ and from the
shell. The message beside it says what was wrong this time.

- Over HTTP it is a [problem document](../http.md#errors), with `code` and `detail`.
- In Python there is a [class](python/errors.md) for each, and all are a `KvError` with `code` and `details`.
- In JavaScript it is a [`KvError`](../javascript.md#errors) with `code` and `message`.
- The command prints the message; its [exit status](../cli.md#exit-statuses) says what kind of error it was.

*Again* says that the same request may succeed later, without being changed. Where waiting alone may help, 503
and 504, the clients and the command repeat it by themselves, within their time-out.

"""

ADVICE = {
    "bad_request": (
        "The message names the field, parameter or header, and what it must be. Correct the request."
    ),
    "unsupported_version": (
        "The client speaks another version of the protocol than the daemon. Upgrade the older one."
    ),
    "unknown_operation": (
        "The daemon does not know the operation, or it is misspelt. `GET /v1/status` has the version."
    ),
    "invalid_key": "Use 1 to 511 bytes of UTF-8 without NUL; in an address, percent-encode it.",
    "invalid_cursor": (
        "Pass a cursor back exactly as an answer or an event's id gave it. Without one, begin with a "
        "snapshot."
    ),
    "unauthenticated": (
        "Send a token, or a good one: `reason` says whether it is missing, unknown, expired or revoked. "
        "`kvstore whoami` shows who you are."
    ),
    "not_allowed": (
        "`needs` and `on` name the grant that is missing: an admin adds it by `kvstore token grant`. A "
        "request from a browser may also be of an origin, or addressed to a name, that is not listed "
        "(`--cors-origins`, `--allowed-hosts`)."
    ),
    "no_such_route": (
        "Look at the path: a proxy may have changed it. `GET /` and `GET /openapi.json` name what there is."
    ),
    "method_not_allowed": "The header `Allow` names the methods of this address.",
    "not_acceptable": "`offered` names the media types that there are; let `Accept` have one of them.",
    "request_timeout": ("Send the request faster, or in smaller parts."),
    "length_required": "Send `Content-Length`, or the body in chunks.",
    "value_too_large": (
        "`limit` is the most that a value may have, in bytes. Store less, store a reference to the data, "
        "or raise `--max-value-bytes`, for a record of a cache `--evict-bytes`."
    ),
    "request_too_large": "`limit` is the most that is taken. Split the batch or the transaction.",
    "uri_too_long": "Send what makes the address long in a body: `POST /v1/subscribe`, `POST /v1/batch`.",
    "unsupported_media_type": (
        "`Accept`, or for a patch `Accept-Patch`, in the answer names what is taken. Values are stored as"
        " they come, without a `Content-Encoding`."
    ),
    "range_not_satisfiable": "Your file may be whole already; else ask for a range within the backup.",
    "expectation_failed": "Send no `Expect` other than `100-continue`.",
    "sequence_reused": (
        "Take a new `Idempotency-Key` for each request; only a repeat of the same request has the same one."
    ),
    "headers_too_large": (
        "Send fewer or shorter headers, often cookies of other programs on this host, or raise "
        "`--max-header-bytes`."
    ),
    "not_found": (
        "It is not there, or no longer: a key may have expired, a subscription ended, a backup been removed. "
        "For a key, over HTTP, `revision` is what to wait on."
    ),
    "not_an_integer": (
        "Only what `incr` or a put of a decimal integer has stored can be counted up. Look at the value."
    ),
    "out_of_range": "Numbers are from −2⁶³ to 2⁶³ − 1. Nothing was changed.",
    "not_json": "Only JSON can be patched. Store the whole value with a put instead.",
    "backup_exists": (
        "One [backup](../backup.md#from-another-machine) is kept at a time. Delete that with this `id` "
        "first, or wait: it is removed an hour after it was last read."
    ),
    "sequence_stale": (
        "Two clients use one client number, or a very late copy of a request arrived. Use the client of "
        "the package, or a number of your own for each process."
    ),
    "cursor_expired": (
        "Begin again with a snapshot; `floor` is where the log begins. To be away for longer, raise "
        "`--retain-events` and `--retain-bytes`."
    ),
    "revision_gone": (
        "The log no longer says what the key was then. `--retain-events` and `--retain-bytes` are how "
        "long it does."
    ),
    "condition_failed": (
        "Somebody else was first. `revision` is the present one of `key`, 0 for none: read, decide, and "
        "try again with it. Where `outcome` is `unknown`, see below."
    ),
    "internal": "A fault of the service: its log has the cause under the request's `request_id`. Report it.",
    "damaged": (
        "The stored record is not what was written. Run `kvstore check`, and restore a backup; the disk "
        "may fail."
    ),
    "reply_too_large": "Ask for less at once: a smaller `limit`, or fewer keys.",
    "too_busy": (
        "Wait as long as `Retry-After` says, and repeat. If it stays, see [operations](../operations.md)."
    ),
    "unavailable": (
        "The service, the daemon behind it, or most of a cluster is away. It is tried again by itself; "
        "see `kvstore status` and the log of the daemon."
    ),
    "timed_out": (
        "The answer did not come in time. Repeating a read is safe; a write may have been done (see "
        "below). For what was waited for: wait on from `cursor`."
    ),
    "http_version_not_supported": "Speak HTTP/1.1; a proxy in front can speak HTTP/2 with browsers.",
    "store_full": (
        "Free room: delete keys, raise `--max-store-bytes`, or give the disk more. Reads and deletes go on."
    ),
}
"""What to do about each. Markdown."""

_UNKNOWN_OUTCOME = """\
## When it is not known whether a write was done

If the connection breaks after a write was sent, nobody can say whether it was applied. The error then has
`"outcome": "unknown"`. Repeating is safe where the request has a number: the Python client and kvstore.js
give every write one, over HTTP it is the [`Idempotency-Key`](../http.md#safe-retries). Without one, read the
key, and repeat on the condition of the revision found.
"""


def errors() -> str:
    """The page."""
    rows = [
        (
            f"[`{row.code}`](#{row.code})",
            str(row.status),
            str(row.exit),
            "yes" if row.retryable else "no",
            row.title,
        )
        for row in ERRORS.values()
    ]
    overview = table(("Code", "HTTP", "Exit", "Again", "Meaning"), rows)
    return f"{_HEAD}{overview}\n## What to do\n\n{''.join(map(_entry, ERRORS.values()))}{_UNKNOWN_OUTCOME}"


def _entry(row: ErrorRow) -> str:
    facts = f"HTTP {row.status}, exit status {row.exit}, `{type(KvError(row.code, '')).__name__}`"
    again = "; may succeed later." if row.retryable else "."
    return f"### `{row.code}`\n\n{row.title}. {facts}{again}\n\n{ADVICE.get(row.code, '')}\n\n"
