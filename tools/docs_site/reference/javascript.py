"""kvstore.js: the head of its page, which :mod:`docs_site.typedoc` completes."""

from __future__ import annotations


def javascript() -> str:
    """The page, without what needs Node.js to be read."""
    return """\
# JavaScript

All that `kvstore.js` exports. [The guide](../javascript.md) shows how it is used.

"""
