"""The reference on the site has all that the code offers. That each example of a route does what it shows is
tested in tests/docs."""

from __future__ import annotations

import re

import click
import pytest
from docs_site.docstrings import as_markdown
from docs_site.reference import REFERENCE
from docs_site.reference.errors import ADVICE
from docs_site.reference.examples import EXAMPLES
from docs_site.reference.python_api import PYTHON
from docs_site.reference.routes import name_of
from docs_site.typedoc import tidied

import kvstore_client
from kvstore_cli.command_line.group import COMMANDS, cli
from kvstore_cli.config.options import OPTIONS
from kvstore_core.errors import ERRORS
from kvstore_http.routes import ENDPOINTS

PAGES = {name: write() for name, write in REFERENCE.items()}


def section(page: str, heading: str) -> str:
    """What is under a heading of the third level, up to the next heading."""
    found = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", PAGES[page], re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} does not have {heading}"
    return found[1]


def test_every_route_has_an_example_in_examples_py_and_no_other_has() -> None:
    assert set(EXAMPLES) == set(map(name_of, ENDPOINTS))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_every_route_is_shown_with_all_that_it_takes_and_answers(endpoint: object) -> None:
    assert isinstance(endpoint, type(ENDPOINTS[0]))
    text = section("reference/routes.md", f"`{name_of(endpoint)}`")
    named = [*endpoint.query, *(header.name for header in endpoint.headers), *endpoint.errors, *endpoint.body]
    assert [name for name in named if name != "*/*" and f"`{name}`" not in text] == []
    assert [answer.status for answer in endpoint.responses if f"\n| {answer.status} | " not in text] == []


def test_every_command_is_shown_with_its_options() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {}
        for words, each in {name: command, **{f"{name} {sub}": each for sub, each in inner.items()}}.items():
            text = section("reference/commands.md", f"`kvstore {words}`")
            flags = [flag for option in each.params for flag in option.opts if flag.startswith("--")]
            assert [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", text)] == [], words


def test_every_error_is_shown_with_what_to_do() -> None:
    assert list(ADVICE) == list(ERRORS)
    for row in ERRORS.values():
        text = section("reference/errors.md", f"`{row.code}`")
        assert f"HTTP {row.status}, exit status {row.exit}, " in text
        assert ADVICE[row.code] in text


def test_the_options_that_the_advice_names_exist() -> None:
    named = set(re.findall(r"`(--[a-z-]+)`", "".join(ADVICE.values())))
    assert named <= {row.flag for row in OPTIONS.values()}


def test_every_public_name_of_the_python_client_is_shown() -> None:
    text = "".join(PAGES[name] for name in PYTHON)
    shown = set(re.findall(r"^::: kvstore_client\.(\w+)$|^\| `(\w+)` \|", text, re.MULTILINE))
    names = {name for found in shown for name in found}
    assert {*kvstore_client.__all__} - names - {"__version__", "commands"} == set()
    assert "::: kvstore_client.commands.put\n" in text


ROLES = """\
As :meth:`put`, or :class:`Client`::

    with x:
        y

End ``a``."""

MARKDOWN = """\
As [`put`][.put], or [`Client`][kvstore_client.Client]:

```python
with x:
    y
```

End `a`."""


def test_docstrings_become_markdown() -> None:
    assert as_markdown(ROLES, is_class=True) == MARKDOWN
    shown = as_markdown(":exc:`NotFound` :attr:`error` :mod:`pickle`", is_class=False)
    assert shown == "[`NotFound`][not_found] [`error`][..error] `pickle`"


TYPEDOC = """\
# x

## connect()

[`Connect`](#connect-3)

***

## Connect

### Extends

- `Signal`
- `Write`

### Methods

#### get()
"""


def test_links_of_typedoc_lead_to_names_whatever_their_case() -> None:
    headings = "## connect() { #connect }", "## Connect { #Connect }", "### get() { #Connect.get }"
    base = "**Extends** `Signal`, `Write`"
    assert (
        tidied(TYPEDOC)
        == f"{headings[0]}\n\n[`Connect`](#Connect)\n\n{headings[1]}\n\n{base}\n\n{headings[2]}\n"
    )
