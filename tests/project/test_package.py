"""Wheel and sdist hold all of kvstore and nothing else, are the same every time, and work once installed.

On the compiled form, under 'make test-compiled', it is the compiled wheel that is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.servers import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
PACKAGES = [ROOT / name for name in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
WHEEL = f"kvstored-{VERSION}-py3-none-any.whl"
SDIST = f"kvstored-{VERSION}.tar.gz"
COMPILED = next(Path(sys.prefix, "wheels").glob("*.whl"), None)
"""What 'make compiled' has installed in this environment, None in one with the pure form."""
FORM = "compiled" if COMPILED else "pure Python"


def build(folder: Path, source: Path = ROOT) -> None:
    """What ``make dist`` does."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", folder]
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


def test_two_packages_are_built(built: Path) -> None:
    assert sorted(file.name for file in built.iterdir()) == sorted([WHEEL, SDIST])


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(built: Path) -> None:
    names = zipfile.ZipFile(built / WHEEL).namelist()
    assert sorted(name for name in names if ".dist-info/" not in name) == sorted(files_of_packages())
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
    build(tmp_path / "dist", tmp_path / f"kvstored-{VERSION}")
    assert (tmp_path / "dist" / WHEEL).read_bytes() == (built / WHEEL).read_bytes()


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of an environment with the wheel in it. What it depends on is taken from this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*command, COMPILED or built / WHEEL], check=True)
    # A folder that a .pth file names has its own .pth files ignored, and with them the editable install.
    library = next(folder.glob("lib/python*/site-packages"))
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (library / "dependencies.pth").write_text("\n".join(ours) + "\n")
    return folder / "bin"


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVSTORE_", "PYTHON"))}
    return {**kept, "HOME": str(folder)}


def test_the_installed_command_says_its_version(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "kvstore", "--version"], cwd=tmp_path, env=environment(tmp_path), capture_output=True
    )
    assert (done.returncode, done.stdout.decode()) == (0, f"kvstore {VERSION} ({FORM})\n")


def test_the_installed_service_serves_its_page_too(installed: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    ports = {f"--{name}": f"tcp://127.0.0.1:{free_port()}" for name in ("requests", "changes")}
    options = [word for pair in {**ports, "--http": address, "--workers": "1"}.items() for word in pair]
    service = subprocess.Popen(
        [installed / "kvstore", "serve", "--data", tmp_path / "data", *options],
        cwd=tmp_path,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
    )
    assert service.stderr is not None
    try:
        said = b""
        while b"kvstore serve: ready" not in said:
            line = service.stderr.readline()
            assert line, said.decode()
            said += line
        url = f"http://{address}"
        command = [installed / "kvstore", "put", "k", "v", "--url", url]
        subprocess.run(command, check=True, cwd=tmp_path, env=environment(tmp_path), capture_output=True)
        page = httpx.get(f"{url}/ui/", follow_redirects=True)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    finally:
        service.terminate()
        service.communicate()
    assert service.returncode == 0
