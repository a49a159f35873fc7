"""Fixtures of the tests that do what the documentation says: a service for the pages, and a reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.markdown import ROOT
from support.servers import Serve, free_port
from support.walkthrough import Walk


@pytest.fixture(scope="module")
def page_port() -> int:
    """Where the reader serves pages of their own, which the pages say is port 8000."""
    return free_port()


@pytest.fixture(scope="module")
def shared_serve(_shared_starter: object, page_port: int) -> Serve:
    """``kvstore serve`` for all pages of a module, which lets the reader's own pages in."""
    options = {"workers": 1, "cors_origins": f"http://localhost:{page_port}"}
    return _shared_starter.start(Serve, options, None)  # type: ignore[attr-defined]


@pytest.fixture
def walk(shared_serve: Serve, page_port: int, tmp_path: Path) -> Iterator[Callable[..., Walk]]:
    """``walk("howto/traefik.md")``: a reader of a page; ``serve``, further ``ports`` and
    ``programs`` may be given."""
    with ExitStack() as stack:
        yield lambda page, serve=shared_serve, ports={}, programs=None: stack.enter_context(
            Walk(ROOT / "docs" / page, serve, tmp_path, {8000: page_port, **ports}, programs)
        )
