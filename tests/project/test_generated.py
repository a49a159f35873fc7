"""What is generated is not changed by hand: the blocking client, which is the asyncio client without the
waiting, and the man pages."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from typing import Any

import man_pages
import pytest
import unasync

from kvstore_client import (
    AsyncClient,
    AsyncMirror,
    AsyncSubscription,
    AsyncTransaction,
    Client,
    Event,
    Mirror,
    Reset,
    Subscription,
    Sync,
    Transaction,
)
from support.servers import Daemon

PAIRS = [
    (AsyncClient, Client),
    (AsyncSubscription, Subscription),
    (AsyncTransaction, Transaction),
    (AsyncMirror, Mirror),
]
WORDS_OF_ASYNCIO = re.compile(r"async|await|\b(a|the|one) task|\bevent loop", re.IGNORECASE)


@pytest.mark.parametrize("source", unasync.FORMS)
def test_the_generated_file_is_up_to_date(source: str) -> None:
    written = (unasync.PACKAGE / unasync.FORMS[source]).read_text()
    assert written == unasync.generated(source), "run 'make format'; changes belong into the asyncio form"


def test_the_man_pages_are_up_to_date() -> None:
    written = {file.name: file.read_text(encoding="utf-8") for file in man_pages.FOLDER.iterdir()}
    generated = man_pages.pages()
    assert written.keys() == generated.keys(), "run 'make format'"
    stale = [name for name, text in generated.items() if written[name] != text]
    assert not stale, "run 'make format'; changes belong into the help texts"


@pytest.mark.parametrize("pattern", unasync.SUBSTITUTIONS)
def test_each_substitution_is_needed(pattern: str) -> None:
    assert any(re.search(pattern, (unasync.PACKAGE / source).read_text()) for source in unasync.FORMS)


@pytest.mark.parametrize(("asynchronous", "blocking"), PAIRS)
def test_both_forms_take_the_same_arguments(asynchronous: type, blocking: type) -> None:
    names = [name for name in vars(asynchronous) if not name.startswith("_")]
    assert names == [name for name in vars(blocking) if not name.startswith("_")]
    for name in names:
        ours, theirs = (
            str(inspect.signature(getattr(form, name)).replace(return_annotation=inspect.Signature.empty))
            for form in (asynchronous, blocking)
        )
        for pattern, replacement in unasync.SUBSTITUTIONS.items():
            ours = re.sub(pattern, replacement, ours)
        assert ours == theirs, name


@pytest.mark.parametrize("source", unasync.FORMS)
def test_the_blocking_form_does_not_speak_of_asyncio(source: str) -> None:
    lines = (unasync.PACKAGE / unasync.FORMS[source]).read_text().splitlines()[1:]
    assert not [line for line in lines if WORDS_OF_ASYNCIO.search(line)]


class ReachedSyncError(Exception):
    """The example has got as far as it should."""


def up_to_date(*_: object) -> None:
    raise ReachedSyncError


def run_example(form: type, **names: Any) -> None:
    """Run the indented code of the form's docstring."""
    [code] = re.findall(r"::\n\n((?: {4}.*\n)+)", inspect.getdoc(form) or "")
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    running = eval(compile(textwrap.dedent(code), form.__name__, "exec", flags), names)  # noqa: S307
    if running is not None:
        asyncio.run(running)


@pytest.mark.parametrize("form", PAIRS[0])
def test_the_examples_of_a_client_run(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: type
) -> None:
    monkeypatch.setenv("KVSTORE_REQUESTS", daemon.requests)
    with Client() as client:
        client.put("jobs/1", b"x")
        run_example(form, **{form.__name__: form})
        assert capsys.readouterr().out == "jobs/1 b'x'\n"
        assert client.get("greeting").text == "hello"


@pytest.mark.parametrize(("form", "client_form"), [*zip(PAIRS[2], PAIRS[0], strict=True)])
def test_the_examples_of_a_transaction_run(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], form: type, client_form: type
) -> None:
    with Client(daemon.requests) as client:
        client.put("stock/tea", "3")
        store = client_form(daemon.requests)
        run_example(form, store=store)
        store.close()
        assert client.get("stock/tea").text == "2"
        assert [order.text for order in client.list(prefix="orders/")] == ["tea"]
        assert capsys.readouterr().out == f"{client.get('stock/tea').revision}\n"


@pytest.mark.parametrize(("form", "client_form"), [*zip(PAIRS[3], PAIRS[0], strict=True)])
def test_the_examples_of_a_mirror_run(
    daemon: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: type,
    client_form: type,
) -> None:
    monkeypatch.setenv("KVSTORE_REQUESTS", daemon.requests)
    monkeypatch.setenv("KVSTORE_CHANGES", daemon.changes)
    store = client_form()
    run_example(form, store=store, **{form.__name__: form})
    store.close()
    assert capsys.readouterr().out == "red 1\n"


@pytest.mark.parametrize("form", PAIRS[1])
def test_the_examples_of_a_subscription_run(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, form: type
) -> None:
    monkeypatch.setenv("KVSTORE_REQUESTS", daemon.requests)
    monkeypatch.setenv("KVSTORE_CHANGES", daemon.changes)
    with Client() as client:
        client.put("jobs/1", b"x")
    seen: list[Event] = []
    names = {"Event": Event, "Reset": Reset, "Sync": Sync, "state": {}, "apply": seen.append}
    with pytest.raises(ReachedSyncError):
        run_example(form, **{form.__name__: form}, **names, print=up_to_date)
    assert [event.key for event in seen] == ["jobs/1"]
