"""The frameworks' own suites, in the environment that has them, on a real service.

Not run of Django's, beside what is about its other backends: the tests of ``MAX_ENTRIES`` (cull), since the
service bounds a cache by its bytes. Not of cachelib's: those of serializers of one's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.servers import Daemon

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv" / "contrib"
SUITES = ENVIRONMENT / "suites"


def run(*arguments: str, cwd: Path, daemon: Daemon, **variables: str) -> str:
    """Run Python where the frameworks are; returns what was printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "KVSTORE"))}
    url = daemon.requests.replace("tcp://", "kvstore://")
    done = subprocess.run(
        [str(ENVIRONMENT / "bin" / "python"), *arguments],
        cwd=cwd,
        env={**kept, **variables, "KVSTORE_FOR_SUITE": url},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module", autouse=True)
def frameworks() -> None:
    assert SUITES.exists(), f"{ENVIRONMENT} is not there; 'make test' makes it"


def test_django(tmp_path: Path, daemon: Daemon) -> None:
    """Its runner takes suites from its folder of tests, so the suite is put into a copy of it."""
    shutil.copytree(SUITES / "django" / "tests" / "cache", tmp_path / "cache")
    for file in ("runtests.py", "urls.py", "test_sqlite.py"):
        shutil.copy(SUITES / "django" / "tests" / file, tmp_path / file)
    for folder in ("templates", "requirements"):
        shutil.copytree(SUITES / "django" / "tests" / folder, tmp_path / folder)
    shutil.copy(HERE / "suites" / "django_suite.py", tmp_path / "cache" / "test_kvstore.py")
    said = run(
        "runtests.py", "--parallel=1", "cache.test_kvstore.KvstoreCacheTests", cwd=tmp_path, daemon=daemon
    )
    found = re.search(r"Ran (\d+) tests", said)
    assert found is not None
    assert int(found[1]) > 50, said


def test_cachelib(tmp_path: Path, daemon: Daemon) -> None:
    shutil.copytree(SUITES / "cachelib" / "tests", tmp_path, dirs_exist_ok=True)
    # its conftest takes what starts other servers from it
    (tmp_path / "xprocess.py").write_text("class ProcessStarter: ...\n")
    shutil.copy(HERE / "suites" / "cachelib_suite.py", tmp_path / "test_kvstore.py")
    said = run(
        "-m",
        "pytest",
        "test_kvstore.py",
        "-p",
        "no:cacheprovider",
        cwd=tmp_path,
        daemon=daemon,
        PYTHONPATH=".",
    )
    found = re.search(r"(\d+) passed", said)
    assert found is not None
    assert int(found[1]) > 20, said
