"""The pages of the reference that are made of the code. They are not in the repository: docs/ has what a
person wrote, and here is what tables, help texts and docstrings say already."""

from __future__ import annotations

from collections.abc import Callable

from docs_site.reference.commands import commands
from docs_site.reference.errors import errors
from docs_site.reference.javascript import javascript
from docs_site.reference.python_api import PYTHON
from docs_site.reference.routes import routes

REFERENCE: dict[str, Callable[[], str]] = {
    "reference/routes.md": routes,
    "reference/commands.md": commands,
    **PYTHON,
    "reference/javascript.md": javascript,
    "reference/errors.md": errors,
}
"""Each page by its path below docs/, and what writes its Markdown. Links in it are relative to that path."""
