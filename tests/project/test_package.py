"""Wheel and sdist hold all of kvstore and nothing else, are the same every time, and work once installed.

On the compiled form, under 'make test-compiled', it is the compiled wheel that is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_bytes
from functools import cache, partial
from importlib.metadata import packages_distributions
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kvstore_core.distribution import EXTRAS
from support.installed import CLIENT, Installed, install, serving
from support.servers import Daemon, Service

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
PACKAGES = [ROOT / name for name in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
SHARED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
WHEEL = f"kvstored-{VERSION}-py3-none-any.whl"
SDIST = f"kvstored-{VERSION}.tar.gz"
COMPILED = next(Path(sys.prefix, "wheels").glob("*.whl"), None)
"""What 'make compiled' has installed in this environment, None in one with the pure form."""
REPOSITORY = PROJECT["project"]["urls"]["Source"]
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com")
LINK = r"(!?)\[[^\]]*\]\(([^)]+)\)"
FORM = "compiled" if COMPILED else "pure Python"


def build(folder: Path, *more: str, source: Path = ROOT) -> None:
    """What ``make dist`` does; with ``-t wheel`` no more than that."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", folder, *more]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


def files_of_packages() -> Iterator[str]:
    for package in PACKAGES:
        for file in package.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                yield str(file.relative_to(package.parent))


def shared_files() -> Iterator[tuple[Path, str]]:
    """Each file of the repository that is installed below the prefix, and where."""
    for source, target in SHARED.items():
        path = ROOT / source
        if path.is_dir():
            yield from ((file, f"{target}/{file.name}") for file in path.iterdir())
        else:
            yield path, target


def test_two_packages_are_built(built: Path) -> None:
    assert sorted(file.name for file in built.iterdir()) == sorted([WHEEL, SDIST])


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(built: Path) -> None:
    names = zipfile.ZipFile(built / WHEEL).namelist()
    shared = [f"kvstored-{VERSION}.data/data/{target}" for _, target in shared_files()]
    assert len(shared) > 40
    expected = sorted([*files_of_packages(), *shared])
    assert sorted(name for name in names if ".dist-info/" not in name) == expected
    assert f"kvstored-{VERSION}.dist-info/licenses/LICENSE" in names


def test_the_sdist_holds_the_repository_and_nothing_that_was_made_in_it(built: Path) -> None:
    with tarfile.open(built / SDIST) as archive:
        names = {name.removeprefix(f"kvstored-{VERSION}/") for name in archive.getnames()}
    for needed in (
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "Makefile",
        "tests/conftest.py",
    ):
        assert needed in names
    assert {str(file.relative_to(ROOT)) for package in PACKAGES for file in package.rglob("*.py")} <= names
    made = re.compile(r"(^|/)(\.venv|\.git|__pycache__|node_modules|dist|\.[a-z]+_cache|\.hypothesis)(/|$)")
    assert not [name for name in names if made.search(name)]


def test_the_same_bytes_come_out_every_time(built: Path, tmp_path: Path) -> None:
    build(tmp_path)
    for name in (WHEEL, SDIST):
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes()


def test_the_wheel_can_be_built_from_the_sdist(built: Path, tmp_path: Path) -> None:
    # not extractall, whose filter is wanted by Python 3.12 and not yet known to Debian 12's 3.11.2
    subprocess.run(["tar", "-xzf", built / SDIST, "-C", tmp_path], check=True)
    build(tmp_path / "dist", "-t", "wheel", source=tmp_path / f"kvstored-{VERSION}")
    assert (tmp_path / "dist" / WHEEL).read_bytes() == (built / WHEEL).read_bytes()


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Installed]:
    """``installed("cli")``: an environment with the wheel, that extra, and only what these declare."""
    file = COMPILED or built / WHEEL
    return cache(lambda extra: install(file, extra, tmp_path_factory.mktemp("installed")))


def test_the_client_needs_only_what_the_package_declares_without_extras(
    installed: Callable[[str], Installed], daemon: Daemon
) -> None:
    done = installed("").run(
        "python", "-c", CLIENT, KVSTORE_REQUESTS=daemon.requests, KVSTORE_CHANGES=daemon.changes
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"k/1 b'v' b'v'\nb'v' {VERSION}\n"


@pytest.mark.parametrize(
    "line",
    [("kvstore",), ("kvstore", "serve"), ("kvstore", "list"), ("python", "-m", "kvstore_cli", "--help")],
    ids=" ".join,
)
def test_without_an_extra_the_command_says_in_one_line_what_to_install(
    line: tuple[str, ...], installed: Callable[[str], Installed]
) -> None:
    done = installed("").run(*line)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    for extra in ("cli", "server"):
        assert f"pip install 'kvstored[{extra}]'" in done.stderr


def test_with_the_extra_cli_the_command_works_for_a_service_elsewhere(
    installed: Callable[[str], Installed], shared_service: Service
) -> None:
    command = partial(installed("cli").run, KVSTORE_URL=shared_service.url)
    assert command("kvstore", "put", "there", "v").returncode == 0
    assert command("python", "-m", "kvstore_cli", "get", "there").stdout == "v\n"
    for line in (
        "list",
        "subscribe --since 0 --count 1",
        "status",
        "ping",
        "top --count 1",
        "whoami",
        "digest",
    ):
        done = command("kvstore", *line.split())
        assert (done.returncode, done.stderr) == (0, ""), line
        assert done.stdout, line


@pytest.mark.parametrize(
    "line",
    ["serve", "daemon", "http", "backup f", "restore f", "check", "compact", "config check"],
)
def test_without_the_extra_server_what_needs_it_says_in_one_line_what_to_install(
    line: str, installed: Callable[[str], Installed]
) -> None:
    done = installed("cli").run("kvstore", *line.split())
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert re.fullmatch(r"kvstore: [a-z]+ is not installed: pip install 'kvstored\[server\]'\n", done.stderr)


def test_the_package_index_shows_the_readme_with_links_and_pictures_that_work(built: Path) -> None:
    with zipfile.ZipFile(built / WHEEL) as wheel:
        page = message_from_bytes(wheel.read(f"kvstored-{VERSION}.dist-info/METADATA"))
    assert page["Description-Content-Type"] == "text/markdown"
    shown = str(page.get_payload())
    readme = (ROOT / "README.md").read_text()
    links, named = re.findall(LINK, shown), re.findall(LINK, readme)
    assert len(links) == len(named) > 20
    assert any(is_picture for is_picture, _ in links)
    for (is_picture, link), (_, target) in zip(links, named, strict=True):
        if target.startswith(("#", "https://", "http://")):
            assert link == target
            continue
        assert (ROOT / target.partition("#")[0]).exists()
        form = f"{RAW}/v{VERSION}/{target}" if is_picture else f"{REPOSITORY}/blob/v{VERSION}/{target}"
        assert link == form


def test_every_requirement_of_an_extra_is_one_that_the_code_can_name(built: Path) -> None:
    """``kvstore_core.distribution`` says what to install by the names that are imported."""
    brought = packages_distributions()
    for extra, modules in EXTRAS.items():
        declared = {
            canonicalize_name(requirement.name)
            for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"][extra])
            if requirement.name != "kvstored"
        }
        assert {canonicalize_name(name) for module in modules for name in brought[module]} >= declared


def test_the_installed_command_says_its_version(installed: Callable[[str], Installed]) -> None:
    done = installed("cli").run("kvstore", "--version")
    assert (done.returncode, done.stdout) == (0, f"kvstore {VERSION} ({FORM})\n")


def test_man_pages_and_completion_are_installed_where_man_and_the_shells_look(
    installed: Callable[[str], Installed],
) -> None:
    prefix = installed("").bin.parent
    for file, target in shared_files():
        assert (prefix / target).read_bytes() == file.read_bytes()
    for file in ("man/man1/kvstore.1", "man/man1/kvstore-get.1", "bash-completion/completions/kvstore"):
        assert (prefix / "share" / file).exists()
    for file in ("zsh/site-functions/_kvstore", "fish/vendor_completions.d/kvstore.fish"):
        assert (prefix / "share" / file).exists()


def test_the_installed_service_serves_its_page_too(
    installed: Callable[[str], Installed], tmp_path: Path
) -> None:
    with serving(installed("server"), tmp_path) as service:
        done = installed("server").run("kvstore", "put", "k", "v", KVSTORE_URL=service.url)
        assert done.returncode == 0, done.stderr
        page = httpx.get(f"{service.url}/ui/", follow_redirects=True)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
