"""How a read and a put of one key are answered, by whichever path they came."""

from __future__ import annotations

import time
from typing import Any, Final
from urllib.parse import quote

import orjson

from kvstore_core.media_types import JSON
from kvstore_http.protocol.json_records import http_date, reply_json, timestamp
from kvstore_http.protocol.preconditions import etag

# Anybody may store a value, and it is served from the origin of this service: a browser must neither guess
# that it is a page nor run scripts in it.
VALUE_HEADERS: Final = {
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "accept-ranges": "bytes",
}

_IN_HEADERS: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What is not percent-encoded in a header's text: all that is printable ASCII, as people write it."""


def record_headers(record: dict[str, Any]) -> dict[str, str]:
    """The headers that go with a value, and with the news that it is unchanged."""
    revision = str(record["revision"])
    headers = {
        **VALUE_HEADERS,
        "etag": f'"{revision}"',
        "last-modified": http_date(_last_modified(record)),
        "x-kvstore-revision": revision,
        "x-kvstore-create-revision": str(record["create_revision"]),
        "x-kvstore-version": str(record["version"]),
    }
    if "expires_at" in record:
        headers["x-kvstore-expires-at"] = timestamp(record["expires_at"])
    for name in ("author", "message"):
        if name in record:
            text = record[name]
            # spaces at the ends of a field's value are not part of it (RFC 9110 section 5.5)
            headers[f"x-kvstore-{name}"] = quote(text, safe=_IN_HEADERS if text == text.strip(" ") else "")
    return headers


def _last_modified(record: dict[str, Any]) -> int:
    """The second for Last-Modified: not later than the answer's Date (RFC 9110 section 8.8.2.1), though the
    daemon's clock may have been ahead when the value was stored. If-Modified-Since is compared with the
    stored time: while that lies ahead, no copy is fresh."""
    modified: int = record["modified_at"] // 1000
    return min(modified, int(time.time()))


def key_address(key: str) -> str:
    """The address of ``key`` on this host, for ``Location``. Slashes are left as people write them, but not
    where a client might take a segment out (RFC 3986 section 5.2.4) or two slashes for one."""
    has_odd_segment = not {"", ".", ".."}.isdisjoint(key.split("/"))
    return "/v1/kv/" + quote(key, safe="" if has_odd_segment else "/")


def written(key: str, result: dict[str, Any]) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and body of the answer to a put: 201 for a key that was not there before."""
    status = "201 Created" if result["version"] == 1 else "200 OK"
    headers = {"etag": etag(result["revision"]), "content-type": JSON}
    return status, headers, orjson.dumps(reply_json(result, key=key))
