"""The ways in to the store under one interface: native client, HTTP, command; and what ``kvstore doctor``
says of a service."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from kvstore_client import Client
from support.servers import clean_environment, run_kvstore
from support.session import call, kv_path


def kvstore(
    url: str, folder: Path, *arguments: str | bytes, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run the command against a service; raises nothing for an exit status other than 0."""
    return run_kvstore(*arguments, env=clean_environment(folder, KVSTORE_URL=url), cwd=folder, stdin=stdin)


class NativeSurface:
    """The native client."""

    def __init__(self, requests: str) -> None:
        self.client = Client(requests)

    def put(self, key: str, value: bytes) -> None:
        self.client.put(key, value)

    def get(self, key: str) -> bytes:
        value = self.client.get(key).value
        assert value is not None
        return value


class HttpSurface:
    """``/v1/kv/{key}``."""

    def __init__(self, url: str) -> None:
        self._url = url

    def put(self, key: str, value: bytes) -> None:
        answer = call(self._url, "PUT", kv_path(key), value)
        assert answer.status in (200, 201), answer

    def get(self, key: str) -> bytes:
        answer = call(self._url, "GET", kv_path(key))
        assert answer.status == 200, answer
        return answer.body


class CommandSurface:
    """``kvstore put`` and ``kvstore get``, with the value on stdin and on stdout."""

    def __init__(self, url: str, folder: Path) -> None:
        self._place = url, folder

    def put(self, key: str, value: bytes) -> None:
        done = kvstore(*self._place, "put", "--", key, "-", stdin=value)
        assert done.returncode == 0, done

    def get(self, key: str) -> bytes:
        done = kvstore(*self._place, "get", "--raw", "--", key)
        assert done.returncode == 0, done
        return done.stdout


Surface = NativeSurface | HttpSurface | CommandSurface


# How fast things are depends on what else runs on the machine, and is nothing that these tests promise.
SPEED = {"slow_disk", "slow_writes", "slow_events"}


class Examined(NamedTuple):
    """What ``kvstore doctor`` said."""

    exit: int
    checks: list[dict[str, Any]]

    @property
    def causes(self) -> set[str]:
        """What it found wrong, and of headers and methods which."""
        found = set()
        for check in self.checks:
            figures = check.get("figures", {})
            detail = figures.get("header") or figures.get("method")
            if check.get("cause") not in (None, *SPEED):
                found.add(check["cause"] + (f" {detail}" if detail else ""))
        return found

    def figures(self, name: str) -> list[Any]:
        """What the checks that measured it say of one figure."""
        measured = [check.get("figures", {}) for check in self.checks]
        return [figures[name] for figures in measured if name in figures]


def examine(url: str, folder: Path, *flags: str) -> Examined:
    """Run ``kvstore doctor --json``, without the listening to silence unless flags are given."""
    done = kvstore(url, folder, "doctor", "--json", *(flags or ["--quick"]))
    assert done.stdout, done.stderr.decode()
    return Examined(done.returncode, json.loads(done.stdout)["checks"])
