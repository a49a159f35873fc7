"""A header's line, or a trailer's: RFC 9112 section 5, without what it calls obsolete."""

from __future__ import annotations

import re

FIELD = re.compile(rb"(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+):(?P<value>[\t\x20-\x7e\x80-\xff]*)")
"""For ``fullmatch``. Takes what waitress's HEADER_FIELD_RE takes, blanks around the value included, in linear
time: that one tries each way to share the blanks behind the colon between the two places for them, half a
minute for 64 KiB of them."""


def trimmed(block: bytes) -> bytes:
    """The lines of ``block`` without blanks at either end of their values, which mean nothing."""
    return b"\r\n".join(map(_trimmed, block.split(b"\r\n")))


def _trimmed(line: bytes) -> bytes:
    if line[:1] in b" \t":
        # nothing, or a folded line, which must be seen as one to be refused
        return line[:1] + line.strip(b" \t")
    name, colon, value = line.partition(b":")
    return name + colon + value.strip(b" \t")
