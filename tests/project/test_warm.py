"""A server that shares its start with others is a process like one that was started by itself."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support.servers import Daemon, Facade, Serve, Server, children, wait_until
from support.warm import WarmProcess


def described(server: Server) -> dict[str, object]:
    """What the processes of a server got from the one that started it, and what it made of that."""
    return {
        **described_process(server.pid, server.folder),
        "parts": sorted(repr(described_part(pid, server)) for pid in children(server.pid)),
    }


def described_part(pid: int, server: Server) -> dict[str, object]:
    """The same of a child, and what ``ps`` shows of it."""
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:5]
    is_alone = os.getpgid(pid) == os.getsid(pid) == pid
    return {**described_process(pid, server.folder), "group": is_alone, "command": command}


def described_process(pid: int, folder: Path) -> dict[str, object]:
    proc = Path(f"/proc/{pid}")
    status = (proc / "status").read_text()
    open_files = sorted(re.sub(r"\d+", "N", str(each.readlink())) for each in (proc / "fd").iterdir())
    return {
        "signals": re.findall(r"^Sig(?:Blk|Ign|Cgt):.*", status, re.MULTILINE),
        "open files": [name for name in open_files if name.startswith(("socket:", "anon_inode:", "pipe:"))],
        "streams": [re.sub(r"\d+", "N", (proc / f"fd/{number}").readlink().name) for number in range(3)],
        "folder": (proc / "cwd").readlink() == folder,
        "threads": len(list((proc / "task").iterdir())),
        "limits": (proc / "limits").read_text(),
        "group": (proc / "stat").read_text().rpartition(")")[2].split()[2],
    }


@pytest.mark.parametrize("kind", ["daemon", "http", "serve"])
def test_it_has_what_others_have_and_ends_as_they_do(
    kind: str,
    daemon: Daemon,
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
    start_serve: Callable[..., Serve],
) -> None:
    def start(environment: dict[str, str] | None) -> Server:
        if kind == "daemon":
            return start_daemon(environment=environment)
        if kind == "serve":
            return start_serve(environment=environment, workers=1)
        return start_facade(daemon, environment=environment)

    shared, alone = start(None), start({"ANY_VARIABLE": "has it started by itself"})
    assert isinstance(shared.process, WarmProcess)
    assert not isinstance(alone.process, WarmProcess)
    # connections to the daemon come and go for a moment after a facade is ready
    wait_until(
        lambda: described(shared) == described(alone),
        what=f"{described(shared)} and\n{described(alone)} are the same",
    )
    for server in (shared, alone):
        server.stop()
        assert server.process is not None
        assert server.process.poll() == 0
        server.start()
        server.kill()
        assert server.process.poll() == -signal.SIGKILL
    assert isinstance(shared.process, WarmProcess)
