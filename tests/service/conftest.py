"""Fixtures of the tests of the whole service: two workers, and nginx in front of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.programs import Nginx
from support.servers import Daemon, Facade, Service


@pytest.fixture(scope="module")
def url(shared_service: Service) -> str:
    """The service without anything in front."""
    return shared_service.url


@pytest.fixture
def two_workers(daemon: Daemon, start_facade: Callable[..., Facade]) -> Service:
    """A daemon, and a facade with two workers."""
    return Service(daemon, start_facade(daemon, workers=2))


@pytest.fixture
def front(tmp_path: Path, url: str) -> Iterator[Callable[[str], str]]:
    """``front(settings)``: the address of an nginx with these settings in front of the service."""
    running: list[Nginx] = []

    def start(http: str) -> str:
        number = len(running)
        running.append(
            Nginx(tmp_path / f"nginx{number}", http.replace("{service}", url.removeprefix("http://")))
        )
        return running[-1].__enter__().url

    yield start
    for nginx in running:
        nginx.__exit__()
