"""A container engine, the image in two versions, and containers that are gone when their test is over.

``make containers`` runs these tests; they are no part of ``make test``, since nobody can count on an
engine. ``CONTAINERS_BUILD_ARGS`` holds what ``docker build`` is to be given besides, such as
``--network host``.
"""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Callable, Iterator

import pytest

from support.containers import DOCKER, Container, run
from support.markdown import ROOT
from support.servers import free_port

BUILD_SECONDS = 3000
"""Minutes of a compiler where the machine is busy."""
BUILD_ARGS = shlex.split(os.environ.get("CONTAINERS_BUILD_ARGS", ""))


@pytest.fixture(scope="session")
def engine() -> str:
    """The engine's version; without an engine these tests fail, as they were asked for by name."""
    try:
        version = run("version", "--format", "{{.Server.Version}}", check=False)
    except FileNotFoundError:
        pytest.exit(f"there is no '{DOCKER[0]}' here; install a container engine, or set DOCKER", 1)
    if version.returncode != 0:
        pytest.exit("no container engine answers; start one, or see docs/containers.md", 1)
    return version.stdout.strip()


def build(tag: str, version: str) -> str:
    labels = [f"VERSION={version}", "REVISION=0000000", "SOURCE=https://example.org/kvstore"]
    arguments = [word for label in labels for word in ("--build-arg", label)]
    run("build", *BUILD_ARGS, *arguments, "--tag", tag, str(ROOT), timeout=BUILD_SECONDS)
    return tag


@pytest.fixture(scope="session")
def image(engine: str) -> str:
    """The image, built from the repository as it stands."""
    return build("kvstore-test:one", "1.0.0-test")


@pytest.fixture(scope="session")
def newer_image(image: str) -> str:
    """Another image of the same service, as the next release would be."""
    return build("kvstore-test:two", "2.0.0-test")


@pytest.fixture
def volume(engine: str) -> Iterator[str]:
    """A named volume of the test's own."""
    name = f"kvstore-test-{uuid.uuid4().hex[:8]}"
    run("volume", "create", name)
    yield name
    run("volume", "rm", "--force", name)


@pytest.fixture
def start(volume: str) -> Iterator[Callable[..., Container]]:
    """``start(image, "--read-only", command=["daemon"])``: a healthy container with a free port of this
    machine in front of its port 5000. It is gone before the volume is."""
    names: list[str] = []

    def start_one(image: str, *options: str, command: tuple[str, ...] = ()) -> Container:
        name = f"kvstore-test-{uuid.uuid4().hex[:8]}"
        address = f"127.0.0.1:{free_port()}"
        names.append(name)
        run("run", "--detach", "--name", name, "--publish", f"{address}:5000", *options, image, *command)
        container = Container(name, f"http://{address}")
        container.wait_healthy()
        return container

    yield start_one
    for name in names:
        run("rm", "--force", "--volumes", name, check=False)
