"""A container engine by its command line, with everything shown that it is told and answers.

``DOCKER`` names the command if it is not ``docker``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable

import httpx

from support.servers import wait_until

DOCKER = shlex.split(os.environ.get("DOCKER", "docker"))
ENGINE_SECONDS = 600
HEALTHY_SECONDS = 90
LOOK_SECONDS = 0.3


Done = subprocess.CompletedProcess[str]


def show(command: list[str], carry_out: Callable[[list[str]], Done]) -> Done:
    """Print ``command``, how it ended, and the end of what it said."""
    began = time.monotonic()
    done = carry_out(command)
    took = time.monotonic() - began
    print(f"\n$ {shlex.join(command)}   # status {done.returncode}, {took:.1f} s")
    print("".join(f"  {line[:300]}\n" for line in (done.stdout + done.stderr).splitlines()[-8:]), end="")
    return done


def run(*arguments: str, check: bool = True, timeout: float = ENGINE_SECONDS) -> Done:
    """``docker ARGUMENTS``, shown with what came of it; it has to succeed if ``check``."""
    done = show(
        [*DOCKER, *arguments],
        lambda command: subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False),
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


class Container:
    """A container that was started, by name or id, with its port 5000 at ``url`` on this machine."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url

    def inspect(self, template: str) -> str:
        """What the engine says of it, in Go's templates."""
        done = subprocess.run(
            [*DOCKER, "inspect", "--format", template, self.name], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def wait_healthy(self) -> None:
        """Wait until the engine calls it healthy; fails at once where it ended instead."""
        wait_until(
            self._is_healthy, timeout=HEALTHY_SECONDS, what=f"{self.name} is healthy", every=LOOK_SECONDS
        )

    def _is_healthy(self) -> bool:
        state, health = self.inspect("{{.State.Status}} {{.State.Health.Status}}").split()
        assert state == "running", (
            f"{self.name} is {state}\n{run('logs', self.name, check=False).stderr[-2000:]}"
        )
        return health == "healthy"

    def wait_restarted(self, times: int) -> None:
        """Wait until the engine has started it again so many times by itself."""
        wait_until(
            lambda: self.inspect("{{.RestartCount}} {{.State.Running}}") == f"{times} true",
            timeout=HEALTHY_SECONDS,
            what=f"{self.name} is started again",
            every=LOOK_SECONDS,
        )

    def exec(self, *command: str, options: tuple[str, ...] = (), check: bool = True) -> str:
        """What ``command`` prints inside of it."""
        return run("exec", *options, self.name, *command, check=check).stdout

    def stop(self) -> int:
        """Stop it; returns its exit status, 137 if the engine lost patience and killed it."""
        run("stop", self.name)
        return int(self.inspect("{{.State.ExitCode}}"))

    def kill_from_outside(self, image: str) -> None:
        """SIGKILL its first process, as the kernel does when memory is short. ``docker kill`` would be
        taken for an operator's wish that it stay down."""
        pid = self.inspect("{{.State.Pid}}")
        run(
            *("run", "--rm", "--pid=host", "--user=0", "--entrypoint=sh", image),
            *("-c", f"kill -9 {pid}"),
        )

    def admin(self) -> dict[str, str]:
        """The header with the first admin's token, as it is found in the volume."""
        token = self.exec("cat", "/data/admin.token").strip()
        return {"Authorization": f"Bearer {token}"}

    def put(self, key: str, value: str) -> int:
        """Store a value through the port, as the admin; returns its revision."""
        answer = httpx.put(f"{self.url}/v1/kv/{key}", content=value, timeout=10, headers=self.admin())
        answer.raise_for_status()
        return int(answer.json()["revision"])

    def get(self, key: str) -> str:
        """A value through the port, as the admin."""
        answer = httpx.get(f"{self.url}/v1/kv/{key}", timeout=10, headers=self.admin())
        answer.raise_for_status()
        return answer.text
