"""Runs of the ``kvstore`` command, and of its servers, that share a start.

A test run makes some two thousand runs of the command, each a process of a tenth of a second, and starts
some seven hundred servers of two to four tenths; nine parts in ten of it are the interpreter and its
imports. Here a process for each kind has done those and forks for each call: a process with arguments,
variables, folder and standard streams of its own, as a shell's would be, that receives signals and leaves
a status. Rejected: calling ``main()`` in the tests' own process, where none of this would be real.

As a script, this file is that process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import io
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from kvstore_cli.main import COMMANDS, SHARED_MODULES, main
from kvstore_cli.terminal.output import COMPLETE_VARIABLE
from kvstore_core.process.linux import end_with_parent

_MOST_BYTES = 64 * 1024
"""Of a call's arguments and variables, so that they fit into one message."""
_DECIDED_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "TZ", "GEVENT", "ZMQ_")
"""What is read before anything runs, or by an import; a call that changes these has a start of its own."""

LOADED = frozenset(COMMANDS) - {"serve", "daemon", "http", "config", "top"}
"""Commands that load nothing heavy and need no signals of their own; the others are run as usual."""
_PARTS = (
    "kvstore_cli.serve.socket_activation",
    "kvstore_cli.serve.logging_setup",
    "kvstore_core.process.sd_notify",
    "encodings.idna",
)
_MODULES = {
    "command": sorted({f"kvstore_cli.commands.{SHARED_MODULES.get(name, name)}" for name in LOADED}),
    "daemon": ("kvstore_cli.commands.servers", "kvstore_daemon.main", *_PARTS),
    "http": ("kvstore_cli.commands.servers", "kvstore_http.main", "kvstore_http.workers.worker", *_PARTS),
}
"""What each kind loads, the servers until they are ready. None of it makes a thread, a socket, a hub of
gevent or a context of ZeroMQ, which would not outlive the fork."""


class Warm:
    """The process that has ``modules`` loaded."""

    def __init__(self, program: str, modules: Sequence[str]) -> None:
        self._program = program
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno()), *modules],
                pass_fds=(theirs.fileno(),),
            )

    def call(self, call: bytes, streams: Sequence[int]) -> int:
        """Begin a process with these streams. Returns the end of a pipe on which its id comes and, once it
        has ended, its status."""
        told, tells = os.pipe()
        try:
            socket.send_fds(self._socket, [call], [*streams, tells])
        finally:
            os.close(tells)
        return told

    def encoded(self, arguments: Sequence[str | bytes], env: Mapping[str, str], cwd: Path | None) -> bytes:
        """A call as it is sent."""
        words = [os.fsdecode(word) for word in (self._program, *arguments)]
        return json.dumps([words, dict(env), str(cwd or Path.cwd())]).encode()


def warm_run(
    program: str,
    arguments: Sequence[str | bytes],
    *,
    stdin: bytes,
    env: Mapping[str, str],
    cwd: Path | None,
    timeout: float,
) -> subprocess.CompletedProcess[bytes]:
    """As :func:`subprocess.run` with its output captured."""
    warm = _warm(program, "command")
    words = [os.fsdecode(word) for word in (program, *arguments)]
    call = warm.encoded(arguments, env, cwd)
    is_loaded = COMPLETE_VARIABLE in env or not LOADED.isdisjoint(words[1:2])
    if not is_loaded or len(call) > _MOST_BYTES or _starts_otherwise(env):
        return subprocess.run(
            words, input=stdin, capture_output=True, cwd=cwd, env=env, timeout=timeout, check=False
        )
    pipes = [os.pipe() for _ in range(3)]
    theirs = [pipes[0][0], *(writing for _, writing in pipes[1:])]
    ours = [pipes[0][1], *(reading for reading, _ in pipes[1:])]
    try:
        ours.append(warm.call(call, theirs))
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    out, err, told = _communicate(ours, stdin, timeout, words)
    return subprocess.CompletedProcess(words, int(told.split()[1]), out, err)


class WarmProcess:
    """A server that was begun so: what of :class:`subprocess.Popen` the tests use."""

    def __init__(self, told: int) -> None:
        self._told = told
        self._said = b""
        while b" " not in self._said:
            self._read()
        self.pid = int(self._said.split()[0])
        self.returncode: int | None = None

    def _read(self) -> bool:
        """Read what is told; whether that was all."""
        more = os.read(self._told, 64)
        self._said += more
        assert more or self._said.partition(b" ")[2], "the process that starts servers is gone"
        return not more

    def poll(self) -> int | None:
        """Its status once it has ended, as :meth:`subprocess.Popen.poll`."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Its status, as :meth:`subprocess.Popen.wait`."""
        if self.returncode is None:
            deadline = None if timeout is None else time.monotonic() + timeout
            is_over = False
            while not is_over:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not select.select([self._told], [], [], left)[0]:
                    raise subprocess.TimeoutExpired("kvstore", timeout or 0)
                is_over = self._read()
            os.close(self._told)
            self.returncode = int(self._said.split()[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start_server(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, output: int
) -> WarmProcess | None:
    """Begin a server by its whole command line, with its output in the descriptor ``output``; None where it
    has to be started as usual."""
    program, *arguments = command
    if arguments[0] not in ("daemon", "http") or _starts_otherwise(env):
        return None
    warm = _warm(program, arguments[0])
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        return WarmProcess(warm.call(warm.encoded(arguments, env, cwd), [null, output, output]))
    finally:
        os.close(null)


def _starts_otherwise(env: Mapping[str, str]) -> bool:
    ours = {name: value for name, value in os.environ.items() if name.startswith(_DECIDED_AT_START)}
    theirs = {name: value for name, value in env.items() if name.startswith(_DECIDED_AT_START)}
    return {**ours, "PYTHONUNBUFFERED": ""} != {**theirs, "PYTHONUNBUFFERED": ""}


def _communicate(
    ours: Sequence[int], stdin: bytes, timeout: float, words: list[str]
) -> tuple[bytes, bytes, bytes]:
    """Write the input, and read both outputs and what the runner tells: the process id, then the status."""
    deadline = time.monotonic() + timeout
    got: dict[int, list[bytes]] = {descriptor: [] for descriptor in ours[1:]}
    left = memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        os.set_blocking(ours[0], False)
        selector.register(ours[0], selectors.EVENT_WRITE)
        for descriptor in ours[1:]:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                os.kill(int(b"".join(got[ours[3]]).split()[0]), signal.SIGKILL)
                raise subprocess.TimeoutExpired(words, timeout)
            for key, _ in ready:
                if key.fd == ours[0]:
                    with contextlib.suppress(BlockingIOError):
                        try:
                            left = left[os.write(key.fd, left) :] if left else left
                        except BrokenPipeError:
                            left = left[:0]
                    is_done = not left
                else:
                    said = os.read(key.fd, 65536)
                    got[key.fd].append(said)
                    is_done = not said
                if is_done:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    out, err, told = (b"".join(got[descriptor]) for descriptor in ours[1:])
    return out, err, told


@functools.cache
def _warm(program: str, kind: str) -> Warm:
    """The one of this process for the servers of a kind, or for the other commands."""
    return Warm(program, _MODULES[kind])


# ── the process that forks ──────────────────────────────────────────────────────────────────────────


def _serve(calls: socket.socket) -> None:
    """Fork for each call. Returns in the process that is to run one; the others end in here."""
    forking = os.getpid()
    while True:
        call, descriptors, _, _ = socket.recv_fds(calls, 2 * _MOST_BYTES, 4)
        if not call:  # whoever calls is gone
            os._exit(0)
        if os.fork() == 0:
            calls.close()
            return _run(json.loads(call), descriptors, forking)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _end_with(parent: int) -> None:
    """Be killed when ``parent``, whose child this is, ends, however it ends."""
    if not end_with_parent(parent, signal.SIGKILL):
        os._exit(1)


def _run(call: list[Any], descriptors: Sequence[int], forking: int) -> None:
    *streams, status = descriptors
    runner = os.getpid()
    _end_with(forking)
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _become(call, streams, runner)
        return
    for descriptor in streams:
        os.close(descriptor)
    os.write(status, b"%d " % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(status, b"%d" % code)
    os._exit(0)


def _become(call: list[Any], streams: Sequence[int], runner: int) -> None:
    """Be a process that was started like this."""
    _end_with(runner)
    words, env, folder = call
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv[:] = words
    how = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors}
    is_unbuffered = bool(env.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "rb", closefd=False)), **how)
    sys.stdout = sys.__stdout__ = _writer(1, is_unbuffered, **how)
    how["errors"] = "backslashreplace"
    sys.stderr = sys.__stderr__ = _writer(2, is_unbuffered, line_buffering=True, **how)


def _writer(descriptor: int, is_unbuffered: bool, **how: Any) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw), write_through=is_unbuffered, **how
    )


def _end(run: Callable[[], int]) -> None:
    """Run the command and end with its status, without taking apart all that is loaded: that would copy
    each page of it."""
    try:
        status = run()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        status = end.code
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        if threading.active_count() == 1:
            os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        import_module(name)
    gc.freeze()  # for the same reason
    _serve(socket.socket(fileno=int(sys.argv[1])))
    if sys.argv[1:2] in (["daemon"], ["http"]):
        # taken apart, as always: this is where a thread or a socket too many shows
        sys.exit(main())
    _end(main)
