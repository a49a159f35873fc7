"""A machine of its own with a real systemd, made of this one's files."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from support.markdown import ROOT
from support.programs import require_program, skip_but_in_ci
from support.servers import wait_until

BOOT = Path(__file__).with_name("boot_systemd")
NAMESPACES = ["--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net", "--kill-child"]


class Machine:
    """Booted while the ``with`` block runs, in a folder of its own; what is written on it is lost."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "machine"
        self._folder.mkdir()
        self._log = folder / "boot.log"
        self._cgroup = _own_cgroup()
        self._pid = ""

    def __enter__(self) -> Machine:
        join = "" if self._cgroup is None else f"echo $$ > {self._cgroup}/cgroup.procs; "
        boot = [BOOT, self._folder, sys.base_prefix, sysconfig.get_path("platlib"), ROOT]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", f'{join}exec unshare "$@"', "sh", *NAMESPACES, *boot], stdout=log, stderr=log
            )
        try:
            self._pid = wait_until(self._first_process, what="the machine's first process")
            wait_until(self._is_up, timeout=60, what="the machine is up")
        except BaseException:
            self._end()
            raise
        return self

    def _skip_if_ended(self) -> None:
        if self._process.poll() is not None:
            skip_but_in_ci(f"no machine can be made here: {self._log.read_text()[-500:]}")

    def _first_process(self) -> str:
        self._skip_if_ended()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return children.read_text().strip() if children.exists() else ""

    def _is_up(self) -> bool:
        self._skip_if_ended()
        return self.call("systemctl", "is-active", "test.target", check=False) == "active"

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        if (group := self._cgroup) is not None:
            wait_until(lambda: "populated 0" in (group / "cgroup.events").read_text())
            for part in sorted(group.rglob("*/"), reverse=True):
                part.rmdir()
            group.rmdir()

    def call(self, *command: str, check: bool = True) -> str:
        """What a command on the machine, run as root, writes; it has to succeed unless told otherwise."""
        enter = ["nsenter", "--target", self._pid, "-m", "-p", "-u", "-i", "-C", "-n", "-r", "-w"]
        done = subprocess.run([*enter, *command], capture_output=True, text=True)
        if check:
            assert done.returncode == 0, f"{command}: {done.stderr}\n{self.journal()[-8000:]}"
        return done.stdout.strip()

    def shell(self, script: str) -> str:
        """What a script on the machine writes."""
        return self.call("sh", "-euc", script)

    def kvstore(self, *arguments: str) -> str:
        """What the command on the machine says."""
        return self.call("/opt/kvstore/bin/kvstore", *arguments)

    def property(self, unit: str, name: str) -> str:
        """What systemd knows of a unit."""
        return self.call("systemctl", "show", "--property", name, "--value", unit)

    def journal(self, unit: str = "kvstore-*") -> str:
        """What services wrote."""
        return self.call("journalctl", "--no-pager", "--output=cat", "--unit", unit, check=False)


def require_machine() -> None:
    """Skip the test where a machine cannot be made."""
    for program in ("unshare", "nsenter", "systemd-analyze"):
        require_program(program)
    if not Path("/lib/systemd/systemd").exists() or os.geteuid() != 0:
        pytest.skip("only root can make a machine, and only where systemd is installed")


def _own_cgroup() -> Path | None:
    """A cgroup for the machine, so that nothing of it is left behind."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mounted_on, kind, *_ = line.split()
        if kind == "cgroup2":
            group = Path(mounted_on) / f"kvstore-test-{secrets.token_hex(4)}"
            group.mkdir()
            return group
    return None
