"""A line of a header or a trailer: RFC 9112 section 5, without the obsolete forms."""

from __future__ import annotations

import re

FIELD = re.compile(rb"(?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+):(?P<value>[\t\x20-\x7e\x80-\xff]*)")
"""For ``fullmatch``. Takes what waitress's HEADER_FIELD_RE takes, blanks around the value included, in linear
time: that one tries each way to divide the blanks behind the colon between the two places for them, and takes
half a minute for 64 KiB of blanks."""


def trimmed(block: bytes) -> bytes:
    """The lines of ``block`` without the blanks around their values, which mean nothing."""
    return b"\r\n".join(map(_trimmed, block.split(b"\r\n")))


def _trimmed(line: bytes) -> bytes:
    if line[:1] in b" \t":
        # empty, or a folded line, which must stay one to be refused
        return line[:1] + line.strip(b" \t")
    name, colon, value = line.partition(b":")
    return name + colon + value.strip(b" \t")
