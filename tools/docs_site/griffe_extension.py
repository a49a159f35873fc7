"""What mkdocstrings reads the docstrings through: an extension of griffe, beside which it runs."""

from __future__ import annotations

from typing import Any

import griffe

from docs_site.docstrings import as_markdown


class Docstrings(griffe.Extension):
    """Makes Markdown of each docstring, once, when its object has been read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, is_class=obj.is_class)
