"""What mkdocstrings reads the docstrings through: an extension of griffe, beside which it runs."""

from __future__ import annotations

from typing import Any

import griffe

from docs_site.docstrings import as_markdown, fields_table


class Docstrings(griffe.Extension):
    """Makes Markdown of each docstring once, when its object has been read, and one table of the fields of a
    tuple or dataclass, which would each have a heading of their own."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, is_class=obj.is_class)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        if not _is_of_fields(cls):
            return
        fields = [member for member in cls.members.values() if _is_field(member)]
        rows = [
            (field.name, str(field.annotation), "" if field.docstring is None else field.docstring.value)
            for field in fields
        ]
        text = "" if cls.docstring is None else cls.docstring.value
        cls.docstring = griffe.Docstring(f"{text}\n\n{fields_table(rows)}", parent=cls)
        for field in fields:
            del cls.members[field.name]
        cls.decorators = []  # nobody makes one, so that a signature would only repeat the table


def _is_of_fields(cls: griffe.Class) -> bool:
    is_dataclass = any(str(decorator.value).startswith("dataclass") for decorator in cls.decorators)
    return is_dataclass or any(str(base) == "NamedTuple" for base in cls.bases)


def _is_field(member: griffe.Object | griffe.Alias) -> bool:
    return member.is_attribute and member.annotation is not None and "property" not in member.labels
