"""The servers need Linux and say so elsewhere; the client and the commands that ask a server do not."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.servers import Service, clean_environment

ROOT = Path(__file__).parents[2]

ELSEWHERE = """
import select, signal, sys
sys.platform = {system!r}
del select.epoll
if sys.platform == "win32":
    import os
    del os.register_at_fork, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP
"""
"""Begins a program that finds itself on another system. The standard library that is imported first is
Linux's, so that what is tested is ours."""

USUAL = "import asyncio, ssl, subprocess, threading, urllib.request, multiprocessing, logging, click, zmq\n"


def run_elsewhere(
    system: str, program: str, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", USUAL + ELSEWHERE.format(system=system) + program, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=clean_environment(folder),
        timeout=40,
    )


def kvstore_elsewhere(system: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from kvstore_cli.main import main\nsys.exit(main())"
    return run_elsewhere(system, program, folder, *arguments)


@pytest.mark.parametrize("system", ["darwin", "win32"])
@pytest.mark.parametrize("command", ["serve", "daemon", "http"])
def test_a_server_says_in_one_sentence_that_it_needs_linux(system: str, command: str, tmp_path: Path) -> None:
    done = kvstore_elsewhere(system, tmp_path, command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"kvstore: kvstore's servers need Linux, and this is {system}; ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["kvstore_daemon", "kvstore_http"])
def test_whoever_imports_a_server_is_told_so(package: str, tmp_path: Path) -> None:
    done = run_elsewhere("darwin", f"import {package}.main", tmp_path)
    assert "kvstore's servers need Linux, and this is darwin" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_the_client_and_the_command_work_elsewhere(
    system: str, shared_service: Service, tmp_path: Path
) -> None:
    endpoints = (shared_service.requests, shared_service.changes)
    program = f"""
from kvstore_client import AsyncClient, AsyncSubscription, Client, Subscription
async def use():
    async with AsyncClient({endpoints[0]!r}) as client, AsyncSubscription(*{endpoints!r}) as changes:
        await client.put("k", "v")
        print(type(await anext(changes)).__name__)
with Client({endpoints[0]!r}) as client, Subscription(*{endpoints!r}) as changes:
    client.put("k", "v")
    print(type(next(changes)).__name__)
with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
    runner.run(use())
"""
    done = run_elsewhere(system, program, tmp_path)
    assert (done.stdout, done.stderr) == ("Sync\nSync\n", "")
    got = kvstore_elsewhere(system, tmp_path, "get", "--url", shared_service.url, "k")
    assert (got.stdout.strip(), got.stderr) == ("v", "")
    exported = kvstore_elsewhere(system, tmp_path, "export", "--url", shared_service.url)
    assert '"key":"k"' in exported.stdout, exported.stderr


def test_the_package_says_that_it_is_for_linux() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "Operating System :: POSIX :: Linux" in project["classifiers"]
    assert "(the servers need Linux;" in (ROOT / "README.md").read_text()
