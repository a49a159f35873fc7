"""The ways in to the store under one interface: native client, HTTP, command."""

from __future__ import annotations

import json
import subprocess
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

from kvstore_client import Client
from support.servers import clean_environment, kvstore_command
from support.warm import warm_command


class Answer(NamedTuple):
    """An HTTP response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def call(
    url: str, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """One HTTP request over a connection of its own. ``target`` goes out as it is: no library on the way
    tidies up ``//`` or ``..`` in it. Header names of the answer are in lower case."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())
    finally:
        connection.close()


def kv_path(key: str) -> str:
    """The address of a key."""
    return "/v1/kv/" + quote(key, safe="/")


class Command:
    """Runs ``kvstore`` against a service."""

    def __init__(self, url: str, folder: Path) -> None:
        self._environment = clean_environment(folder, KVSTORE_URL=url)

    def run(self, *arguments: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run it to its end; raises nothing for an exit status other than 0."""
        command = warm_command(*kvstore_command())
        return command.run(arguments, stdin=stdin, env=self._environment, cwd=None, timeout=50)


class Surface(Protocol):
    """What every way in can do."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes: ...


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
        self._command = Command(url, folder)

    def put(self, key: str, value: bytes) -> None:
        done = self._command.run("put", "--", key, "-", stdin=value)
        assert done.returncode == 0, done

    def get(self, key: str) -> bytes:
        done = self._command.run("get", "--raw", "--", key)
        assert done.returncode == 0, done
        return done.stdout


RUN_SECONDS = 50

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


def examine(url: str, folder: Path, *flags: str) -> Examined:
    """Run ``kvstore doctor --json``, without the listening to silence unless flags are given."""
    done = warm_command(*kvstore_command()).run(
        ["doctor", "--json", "--url", url, *(flags or ["--quick"])],
        stdin=b"",
        env=clean_environment(folder),
        cwd=folder,
        timeout=RUN_SECONDS,
    )
    assert done.stdout, done.stderr.decode()
    return Examined(done.returncode, json.loads(done.stdout)["checks"])
