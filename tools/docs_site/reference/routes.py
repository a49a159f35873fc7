"""The routes of the HTTP interface, from the OpenAPI document that the service has at ``/openapi.json``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from docs_site.reference.examples import EXAMPLES, PREPARATION
from docs_site.text import ROOT, code, escaped, slug
from kvstore_cli.docs_tables import table
from kvstore_core.errors import ERRORS
from kvstore_http.resources.service.openapi import document, member_of
from kvstore_http.routes import ANYWHERE, ENDPOINTS, Endpoint

Schema = dict[str, Any]

_HEAD = """\
# HTTP routes

Every route with all that it takes and answers, as the service itself describes them at `/openapi.json`. What
they have in common, conditions, guards, safe retries and the like, is in [The HTTP interface](../http.md).

HEAD works wherever GET does, and OPTIONS everywhere. Keys in a path are percent-encoded; slashes may stay.
Errors are problem documents with one of [these codes](errors.md); besides those of each route, any may answer
ANYWHERE.

The examples run one after the other against a service on this machine, in which there is this:

```console
PREPARATION
```

Where [access](../access.md) is on, a request needs a token. curl sends it from `~/.curlrc`, where it is in no
process list and no history:

```text
header = "Authorization: Bearer kv_…"
```

"""

_NEEDS = {
    "public": "nothing",
    "known": "a token, or any grant of `anonymous`",
    "by_ops": "what [its operations need](../access.md#what-each-operation-needs)",
    "monitor": "the grant `monitor`",
    "admin": "the grant `admin`",
}


class Section(NamedTuple):
    """A heading of docs/http.md, and the names of the routes below it."""

    title: str
    routes: list[str]


def routes() -> str:
    """The page."""
    described = document()
    anywhere = ", ".join(map(_error_link, ANYWHERE))
    parts = [_HEAD.replace("ANYWHERE", anywhere).replace("PREPARATION", PREPARATION.strip())]
    by_name = {name_of(endpoint): endpoint for endpoint in ENDPOINTS}
    for section in _sections():
        parts.append(f"## {section.title}\n\n")
        parts += [_route(by_name[name], described) for name in section.routes]
    parts.append("## Bodies\n\n")
    parts += [_body(name, schema) for name, schema in sorted(described["components"]["schemas"].items())]
    return "".join(parts)


def name_of(endpoint: Endpoint) -> str:
    """``GET /v1/kv``."""
    return f"{endpoint.method} {endpoint.path}"


def _sections() -> Iterator[Section]:
    """In the order of docs/http.md, which a test makes have each route once."""
    section = Section("", [])
    text = (ROOT / "docs/http.md").read_text()
    for mark, heading in re.findall(r"^(##|###) (.*)$", text, re.MULTILINE):
        if mark == "##":
            if section.routes:
                yield section
            section = Section(heading, [])
        elif route := re.fullmatch(r"`([A-Z]+ /\S*)`", heading):
            section.routes.append(route[1])
    if section.routes:
        yield section


def _route(endpoint: Endpoint, described: dict[str, Any]) -> str:
    name = name_of(endpoint)
    operation = described["paths"][endpoint.path][member_of(endpoint.method)]
    old = " For old clients." if endpoint.deprecated else ""
    parts = [
        f"### `{name}`\n\n{escaped(endpoint.summary)}.{old} [More about it](../http.md#{slug(name)}).\n\n",
        f"Needs: {_NEEDS[endpoint.needs]}.\n\n",
        _example(name),
        _parameters("Query", "query", operation),
        _parameters("Header", "header", operation),
    ]
    if (body := operation.get("requestBody")) is not None:
        parts.append(f"Body: {_content(body['content'])}.\n\n")
    parts += [_responses(operation), _errors(endpoint)]
    return "".join(parts)


def _example(name: str) -> str:
    example = EXAMPLES.get(name)
    if example is None:
        return ""  # a test says so
    lead = "In another terminal, since it goes on:\n\n" if example.goes_on else ""
    return f"{lead}```console\n{example.text.strip()}\n```\n\n"


def _parameters(title: str, place: str, operation: dict[str, Any]) -> str:
    rows = [
        (code(each["name"]), _kind(each["schema"]) + (", needed" if each.get("required") else ""),
         each["description"] if place == "header" else escaped(each["description"]))
        for each in operation["parameters"]
        if each["in"] == place
    ]  # fmt: skip
    if place == "header":
        rows = [(name, meaning) for name, _, meaning in rows]  # type: ignore[misc]  # all of them are texts
    head = (title, "Kind", "Meaning") if place == "query" else (title, "Meaning")
    return table(head, rows) + "\n" if rows else ""


def _responses(operation: dict[str, Any]) -> str:
    rows = [
        (status, escaped(answer["description"]), _content(answer.get("content", {})) or "none")
        for status, answer in operation["responses"].items()
        if int(status) < 400
    ]
    return table(("Status", "Meaning", "Body"), rows) + "\n"


def _errors(endpoint: Endpoint) -> str:
    if not endpoint.errors:
        return ""
    codes = sorted(endpoint.errors, key=lambda each: ERRORS[each].status)
    return f"Errors: {', '.join(map(_error_link, codes))}.\n\n"


def _error_link(error: str) -> str:
    return f"[`{error}`](errors.md#{error})"


def _content(content: dict[str, Any]) -> str:
    """Each media type with its schema."""
    return ", ".join(
        f"{'any type' if media_type == '*/*' else code(media_type)}: {_kind(each['schema'])}"
        for media_type, each in content.items()
    )


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────


def _body(name: str, schema: Schema) -> str:
    parts = [f"### {name}\n\n"]
    if "description" in schema:
        parts.append(f"{escaped(schema['description'])}\n\n")
    if "anyOf" in schema:
        parts.append(f"{_kind(schema)}\n\n")
    if properties := schema.get("properties"):
        needed = set(schema.get("required", ()))
        rows = [
            (code(member), _kind(each) + ("" if member in needed else "; may be left out"),
             escaped(each.get("description", "")))
            for member, each in properties.items()
        ]  # fmt: skip
        parts.append(table(("Member", "Kind", "Meaning"), rows) + "\n")
    elif "description" not in schema and "anyOf" not in schema:
        parts.append(f"{_kind(schema)}\n\n")
    return "".join(parts)


_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "flag",
    "object": "object",
    "null": "null",
}


def _kind(schema: Schema) -> str:
    """What a value of the schema is, in a word or two."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(code, schema["enum"]))
    if "const" in schema:
        return code(str(schema["const"]).lower())
    types = schema.get("type", "any JSON")
    if types == "array":
        return f"list of {_kind(schema['items'])}"
    if isinstance(types, list):
        return " or ".join(_kind({**schema, "type": each}) for each in types)
    if types == "string" and schema.get("contentEncoding") == "base64":
        return "base64"
    if types == "string" and schema.get("format") == "date-time":
        return "date"
    return _KINDS.get(types, types)
