"""Wheel and sdist as their users get them: into an empty environment of each Python that is here, by its pip,
with the versions that the index has today and, for one Python, the oldest ones that are declared, and with
warnings as errors.

``make installs`` runs these tests on what ``make dist`` has built. They are no part of ``make test``, which
needs the versions of constraints.txt alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from support.etcd import EtcdCluster, fresh_prefix
from support.installed import CLIENT, WARNINGS, Installed, install_by_pip, serving
from support.interpreters import interpreters
from support.servers import Daemon, Service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
FILES = {
    "wheel": ROOT / f"dist/kvstored-{VERSION}-py3-none-any.whl",
    "sdist": ROOT / f"dist/kvstored-{VERSION}.tar.gz",
}
PYTHONS = interpreters()
OLDEST = [
    f"{requirement.name}=={bound.version}"
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, group)
    for bound in requirement.specifier
    if bound.operator == ">="
]
"""The oldest version of each package that is said to do."""


@pytest.fixture(
    scope="module",
    params=[
        *((python, file, "latest") for python in PYTHONS for file in FILES),
        (min(PYTHONS, key=lambda name: tuple(map(int, name.split(".")))), "wheel", "oldest"),
    ],
    ids="-".join,
)
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Installed]:
    """``installed("cli")``: an environment with that extra."""
    python, file, versions = request.param
    constraints = OLDEST if versions == "oldest" else []

    def install(extra: str) -> Installed:
        folder = tmp_path_factory.mktemp("installed")
        return install_by_pip(PYTHONS[python], FILES[file], extra, folder, constraints)

    return cache(install)


def run(installed: Installed, *line: str, **variables: str) -> str:
    """What a program prints, which succeeds and has nothing to complain about."""
    done = installed.run(*line, PYTHONWARNINGS=WARNINGS, **variables)
    assert (done.returncode, done.stderr) == (0, ""), line
    return done.stdout


def use(installed: Installed, url: str) -> None:
    """Write, read and follow by the command."""
    run(installed, "kvstore", "put", "k", "v", KVSTORE_URL=url)
    assert run(installed, "python", "-m", "kvstore_cli", "get", "k", KVSTORE_URL=url) == "v\n"
    line = ("kvstore", "subscribe", "--since", "0", "--count", "1", "--json")
    assert '"key":"k"' in run(installed, *line, KVSTORE_URL=url)


def test_the_client_works_alone_and_the_command_says_what_it_needs(
    installed: Callable[[str], Installed], daemon: Daemon
) -> None:
    there = {"KVSTORE_REQUESTS": daemon.requests, "KVSTORE_CHANGES": daemon.changes}
    assert run(installed(""), "python", "-c", CLIENT, **there) == f"k/1 b'v' b'v'\nb'v' {VERSION}\n"
    refused = installed("").run("kvstore", "--version")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "pip install 'kvstored[cli]'" in refused.stderr


def test_the_command_works_for_a_service_elsewhere(
    installed: Callable[[str], Installed], shared_service: Service
) -> None:
    assert run(installed("cli"), "kvstore", "--version") == f"kvstore {VERSION} (pure Python)\n"
    use(installed("cli"), shared_service.url)
    refused = installed("cli").run("kvstore", "serve")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "pip install 'kvstored[server]'" in refused.stderr


def test_the_service_works_with_its_page_and_the_command(
    installed: Callable[[str], Installed], tmp_path: Path
) -> None:
    with serving(installed("server"), tmp_path) as service:
        use(installed("server"), service.url)
        assert "<title>" in httpx.get(f"{service.url}/ui/").text
    assert "Warning" not in service.stderr


def test_the_service_works_over_etcd(
    installed: Callable[[str], Installed], etcd: EtcdCluster, tmp_path: Path
) -> None:
    with serving(installed("etcd"), tmp_path, engine=etcd.address(fresh_prefix())) as service:
        use(installed("etcd"), service.url)
    assert "Warning" not in service.stderr


def test_the_plugin_of_pytest_gives_tests_a_service(
    installed: Callable[[str], Installed], tmp_path: Path
) -> None:
    written = tmp_path / "test_written.py"
    written.write_text(
        "def test_it_is_kept(kvstore):\n"
        "    kvstore.client.put(kvstore.key('k'), 'v')\n"
        "    assert kvstore.client.get(kvstore.key('k')).text == 'v'\n"
    )
    assert "1 passed" in run(installed("test"), "python", "-m", "pytest", "-q", str(written))
