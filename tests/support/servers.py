"""What all tests share: waiting without sleeping, free ports, and handles on real server processes.

A server is stopped by SIGTERM and must then exit 0; one that ended by itself, or lingers, fails the
test. Whatever happens to the test run, no server outlives it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from support.patience import PATIENCE_SECONDS
from support.warm import WarmProcess, start_server, warm_run

Answer = TypeVar("Answer")


def wait_until(
    condition: Callable[[], Answer], *, timeout: float = PATIENCE_SECONDS, what: str = "", every: float = 0.01
) -> Answer:
    """Call ``condition`` until it is true and return what it gave.

    ``timeout`` (seconds) keeps a broken test from hanging and is no promise about speed: choose it
    generously. ``what`` names the condition in the AssertionError that is raised after it. The first pauses
    are ``every`` seconds long, and later ones longer, up to a quarter of a second, the more the condition
    costs and the longer the wait is: many tests share the machine, and one that waits leaves it to others.
    With 0 there is no pause at all.
    """
    began = asked = time.monotonic()
    while not (answer := condition()):
        now = time.monotonic()
        if now > began + timeout:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        slower = min(_MOST_PAUSE_SECONDS, 2 * (now - asked), (now - began) / 20)
        time.sleep(every and max(every, slower))
        asked = time.monotonic()
    return answer


_MOST_PAUSE_SECONDS = 0.25


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by SIGSTOP; False for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] == "T"


def children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # a thread has those that it started
    return sorted(int(child) for each in lists for child in each.read_text().split())


# Below the range from which Linux takes the ports of outgoing connections (32768 on). A client that
# keeps reconnecting to a port inside that range while its server is down is sooner or later given
# that very port to connect from, connects to itself, and the server cannot be started again.
_PORTS = range(15_000, 32_000)

_given: set[int] = set()

# Of this file, byte N is locked by the process that was given port N, for as long as it lives. That nothing
# listens on a port is not enough: it may be that of a server that is about to start, or that a test has
# stopped, and a client of the one would speak to the other.
_claims = os.open(
    Path(tempfile.gettempdir(), f"kvstore-test-ports-{os.getuid()}"),
    os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
    0o600,
)


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens, never the same one twice in a process, nor one that
    another process of tests on this machine was given and may still use."""
    chooser = random.SystemRandom()
    while True:
        port = chooser.choice(_PORTS)
        if port not in _given and _is_claimed(port) and _is_free(port):
            _given.add(port)
            return port


def _is_claimed(port: int) -> bool:
    """Whether the port is this process's from now on."""
    try:
        fcntl.lockf(_claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def kvstore_command(*arguments: str) -> list[str]:
    """The command line that runs this environment's ``kvstore`` with ``arguments``."""
    return [str(Path(sysconfig.get_path("scripts")) / "kvstore"), *arguments]


def run_kvstore(
    *arguments: str | bytes,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: bytes = b"",
    timeout: float = 60,
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end; raises nothing for an exit status other than 0."""
    return warm_run(kvstore_command()[0], arguments, stdin=stdin, env=env, cwd=cwd, timeout=timeout)


def clean_environment(home: Path, **changes: str) -> dict[str, str]:
    """The environment without any ``KVSTORE_*`` variable and with ``home`` in place of the user's
    own folders, so that no configuration of the machine reaches a test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVSTORE_", "XDG_"))}
    return {**kept, "HOME": str(home), "PYTHONUNBUFFERED": "1", **changes}


def flags(options: dict[str, Any]) -> list[str]:
    """``{"retain_events": 5, "allow_anonymous": True}`` as ``--retain-events 5 --allow-anonymous``;
    None and False leave an option out."""
    line: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        line += [flag] if value is True else [flag, str(value)]
    return line


def messages(said: str) -> str:
    """What a log says: its lines as they are, and of those in JSON the message."""
    whole = said.split("\n")[:-1]
    return "".join((json.loads(line)["message"] if line.startswith("{") else line) + "\n" for line in whole)


class Server:
    """One ``kvstore`` server process, with its stderr in a file.

    ``options`` are the command's flags by name. A class of its own for each command says what the
    ready line looks like; the addresses in it, and the data folder, are attributes of the handle.
    """

    name: str
    places: dict[str, str]
    """Options of each server's own, where ``{folder}`` is its folder and ``{port}`` a free port."""
    ready_line: re.Pattern[str]
    wrapper: Sequence[str] = ()
    """A program that does something and then becomes the server."""
    passed_descriptors: Sequence[int] = ()
    """What it inherits besides the standard streams."""
    program: str = ""
    """The ``kvstore`` of another environment than this one."""

    def __init__(self, folder: Path, options: dict[str, Any], environment: dict[str, str] | None = None):
        own = {name: place.format(folder=folder, port=free_port()) for name, place in self.places.items()}
        self.options = {**own, **options}
        self.folder = folder
        self.log = folder / f"{self.name}.stderr"
        # what a person would see on a terminal, unless the test asks for something else
        self.environment = clean_environment(folder, **{"KVSTORE_LOG_FORMAT": "text", **(environment or {})})
        # a variable that is not for the command may matter before it runs: to libraries, to the loader
        self._starts_as_usual = any(not name.startswith("KVSTORE_") for name in environment or {})
        self.process: subprocess.Popen[bytes] | WarmProcess | None = None
        self._expected_to_run = False

    def start(self) -> Self:
        """Start the process and return once it said that it is ready."""
        assert not self.is_running, f"{self.name} runs already"
        offset = self.log.stat().st_size if self.log.exists() else 0
        program, *arguments = kvstore_command(self.name, *flags(self.options))
        self.process = self._begin([self.program or program, *arguments])
        self._expected_to_run = True
        self._wait_until_ready(offset)
        return self

    def _begin(self, command: list[str]) -> subprocess.Popen[bytes] | WarmProcess:
        with self.log.open("ab") as log:
            if not (self._starts_as_usual or self.wrapper or self.passed_descriptors or self.program):
                warm = start_server(command, env=self.environment, cwd=self.folder, output=log.fileno())
                if warm is not None:
                    return warm
            return subprocess.Popen(
                dies_with_us([*self.wrapper, *command]),
                pass_fds=self.passed_descriptors,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait_until_ready(self, offset: int) -> None:
        def ready() -> re.Match[str] | None:
            assert self.is_running, f"{self.name} ended before it was ready:\n{self.stderr}"
            return self.ready_line.search(messages(self._read(offset)))

        found = wait_until(ready, what=f"{self.name} says that it is ready")
        for name, place in found.groupdict().items():
            setattr(self, name, Path(place) if name == "data" else place)

    @property
    def is_running(self) -> bool:
        """Whether the process is there now."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the present, or of the last, process."""
        assert self.process is not None
        return self.process.pid

    @property
    def anonymous_memory(self) -> int:
        """The bytes of memory that the process has for itself."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024

    @property
    def stderr(self) -> str:
        """Everything the server wrote, over all its restarts."""
        return self._read(0)

    def _read(self, offset: int) -> str:
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[offset:].decode(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        self.process.send_signal(number)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stopped by SIGSTOP meanwhile."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._expected_to_run = False
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        """SIGTERM, and check that the process exits 0. A server that is not running because it was
        killed or stopped is left alone; one that ended by itself fails here."""
        if not self._expected_to_run:
            return
        assert self.process is not None
        self._expected_to_run = False
        assert self.is_running, f"{self.name} ended by itself:\n{self.stderr[-4000:]}"
        self.signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not stop on SIGTERM:\n{self.stderr[-4000:]}") from None
        assert status == 0, f"{self.name} ended with status {status}:\n{self.stderr[-4000:]}"

    def restart(self, **options: Any) -> Self:
        """Stop, if it runs, and start again on the same addresses and data, with ``options`` changed."""
        self.stop()
        self.options = {**self.options, **options}
        return self.start()


class Daemon(Server):
    """``kvstore daemon`` with a store of its own."""

    name = "daemon"
    places: ClassVar = {
        "data": "{folder}/data",
        "requests": "tcp://127.0.0.1:{port}",
        "changes": "tcp://127.0.0.1:{port}",
    }
    ready_line = re.compile(
        r"kvstore daemon: ready, requests (?P<requests>\S+), changes (?P<changes>\S+), data (?P<data>.+)"
    )
    requests: str
    changes: str
    data: Path
    engine_address: ClassVar[Callable[[Path], str] | None] = None
    """Gives the ``--engine`` of the store that belongs to a data folder; None: the default. A test may name
    one itself."""

    def __init__(self, folder: Path, options: dict[str, Any], environment: dict[str, str] | None = None):
        super().__init__(folder, options, environment)
        self._has_own_engine = "engine" in self.options

    def start(self) -> Self:
        if self.engine_address is not None and not self._has_own_engine:
            self.options["engine"] = self.engine_address(Path(self.options["data"]))
            self.options.pop("sync", None)  # the file's; all others sync always
        return super().start()


StartDaemon = Callable[..., Daemon]


class Facade(Server):
    """``kvstore http`` in front of a daemon."""

    name = "http"
    places: ClassVar = {"http": "127.0.0.1:{port}"}
    ready_line = re.compile(r"kvstore http: ready, (?P<url>https?://[^\s,]+)")
    url: str


class Serve(Daemon, Facade):
    """``kvstore serve``: daemon and facade under one parent, as a user starts them."""

    name = "serve"
    places: ClassVar = {**Daemon.places, **Facade.places}
    ready_line = re.compile(rf"(?=[\s\S]*{Daemon.ready_line.pattern})(?=[\s\S]*{Facade.ready_line.pattern})")


class Service(NamedTuple):
    """A daemon and the facade in front of it, each a process that can be killed by itself."""

    daemon: Daemon
    facade: Facade

    @property
    def url(self) -> str:
        """The facade's address, ``http://127.0.0.1:PORT``."""
        return self.facade.url

    @property
    def requests(self) -> str:
        """The daemon's endpoint for requests."""
        return self.daemon.requests

    @property
    def changes(self) -> str:
        """The daemon's endpoint for changes."""
        return self.daemon.changes


def dies_with_us(command: Sequence[str], by: str = "KILL") -> list[str]:
    """``command`` as one whose process gets the signal ``by`` when this one ends, however it ends."""
    # setpriv and not preexec_fn: Python warns about the latter in a process with threads, and
    # warnings are errors here. It replaces itself by the command, so the process id stays.
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", by, "--", *command] if setpriv else list(command)
