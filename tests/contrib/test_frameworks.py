"""The frameworks' own suites, in the environment that has them, on a real service.

Not run of Django's, beside what is about its other backends: the tests of ``MAX_ENTRIES`` (cull), since the
service bounds a cache by its bytes. Not of cachelib's: those of serializers of one's own. Not of Celery's:
those which count how often a backend sleeps, since this one does not, or compare the names of keys.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
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
    done = subprocess.run(
        [str(ENVIRONMENT / "bin" / "python"), *arguments],
        cwd=cwd,
        env={**kept, **variables, "KVSTORE_FOR_SUITE": url_of(daemon)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_pytest(file: str, *options: str, cwd: Path, daemon: Daemon, **variables: str) -> int:
    """Run a file of tests, which pass; returns how many there were."""
    arguments = ["-m", "pytest", file, "-p", "no:cacheprovider", *options]
    said = run(*arguments, cwd=cwd, daemon=daemon, PYTHONPATH=".", **variables)
    found = re.search(r"(\d+) passed", said)
    assert found is not None, said
    return int(found[1])


def url_of(daemon: Daemon) -> str:
    """As the backends take it, with a place for the prefix."""
    port = daemon.changes.rpartition(":")[2]
    return f"{daemon.requests.replace('tcp://', 'kvstore://')}/{{}}?changes={port}"


@pytest.fixture(scope="module", autouse=True)
def frameworks() -> None:
    assert SUITES.exists(), f"{ENVIRONMENT} is not there; 'make test' makes it"


@pytest.fixture
def daemon(start_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon which takes less in a request than the backends send at first."""
    return start_daemon(max_batch_bytes="2MiB")


@pytest.fixture
def full(start_daemon: Callable[..., Daemon]) -> str:
    """The address of a daemon whose store is soon full."""
    return url_of(start_daemon(max_store_bytes=2 * 1024 * 1024, retain_events=1))


def test_django(tmp_path: Path, daemon: Daemon, full: str) -> None:
    """Its runner takes suites from its folder of tests, so the suite is put into a copy of it."""
    shutil.copytree(SUITES / "django" / "tests" / "cache", tmp_path / "cache")
    for file in ("runtests.py", "urls.py", "test_sqlite.py"):
        shutil.copy(SUITES / "django" / "tests" / file, tmp_path / file)
    for folder in ("templates", "requirements"):
        shutil.copytree(SUITES / "django" / "tests" / folder, tmp_path / folder)
    shutil.copy(HERE / "suites" / "django_suite.py", tmp_path / "cache" / "test_kvstore.py")
    said = run(
        *("runtests.py", "--parallel=1", "cache.test_kvstore.KvstoreCacheTests"),
        cwd=tmp_path,
        daemon=daemon,
        FULL_FOR_SUITE=full,
    )
    found = re.search(r"Ran (\d+) tests", said)
    assert found is not None
    assert int(found[1]) > 50, said


def test_cachelib(tmp_path: Path, daemon: Daemon, full: str) -> None:
    shutil.copytree(SUITES / "cachelib" / "tests", tmp_path, dirs_exist_ok=True)
    # its conftest takes what starts other servers from it
    (tmp_path / "xprocess.py").write_text("class ProcessStarter: ...\n")
    shutil.copy(HERE / "suites" / "cachelib_suite.py", tmp_path / "test_kvstore.py")
    assert run_pytest("test_kvstore.py", cwd=tmp_path, daemon=daemon, FULL_FOR_SUITE=full) > 20


def test_celery(tmp_path: Path, daemon: Daemon) -> None:
    shutil.copytree(SUITES / "celery" / "t", tmp_path / "t")
    shutil.copy(HERE / "suites" / "celery_suite.py", tmp_path / "t" / "unit" / "test_kvstore.py")
    assert run_pytest("t/unit/test_kvstore.py", "-W", "ignore", cwd=tmp_path, daemon=daemon) > 40


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_celery_with_a_real_worker(tmp_path: Path, daemon: Daemon, pool: str) -> None:
    shutil.copy(HERE / "suites" / "celery_tasks.py", tmp_path)
    shutil.copy(HERE / "suites" / "celery_worker_suite.py", tmp_path / "test_worker.py")
    variables = {"CELERY_FOLDER": str(tmp_path), "CELERY_POOL": pool}
    assert run_pytest("test_worker.py", cwd=tmp_path, daemon=daemon, **variables) > 8
