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
import types
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from kvstore_cli.command_line.group import COMMANDS, SHARED_MODULES
from kvstore_cli.main import main
from kvstore_cli.terminal.output import COMPLETE_VARIABLE
from kvstore_core.process.linux import end_with_parent

_MOST_BYTES = 64 * 1024
"""Of a call's arguments and variables, so that they fit into one message."""
_DECIDED_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "TZ", "GEVENT", "ZMQ_")
"""What is read before anything runs, or by an import; a call that changes these has a start of its own."""

LOADED = frozenset(COMMANDS) - {"serve", "daemon", "http", "config", "top"}
"""Commands that load nothing heavy and need no signals of their own."""
_KINDS = {"serve": "serve", "daemon": "daemon", "http": "http", "config": "serve"}
"""Which process has loaded what another command needs; one that is not named is run as usual."""
_WHOLE_ENDS = 8
"""Of so many servers one is taken apart at its end, by the interpreter, which takes as long as its start."""
_CHILD = "kvstore_cli.serve.child"
_PARTS = (
    "kvstore_cli.serve.socket_activation",
    "kvstore_cli.serve.logging_setup",
    "kvstore_core.process.sd_notify",
    "encodings.idna",
)
_MODULES = {
    "command": (
        *sorted({f"kvstore_cli.commands.{SHARED_MODULES.get(name, name)}" for name in LOADED}),
        "click._textwrap",
        "encodings.idna",
        "shutil",
    ),
    "daemon": ("kvstore_cli.commands.servers", "kvstore_daemon.main", *_PARTS),
    "http": ("kvstore_cli.commands.servers", "kvstore_http.main", "kvstore_http.workers.worker", *_PARTS),
}
_MODULES["serve"] = (*_MODULES["daemon"], *_MODULES["http"], "kvstore_cli.serve.supervisor", _CHILD)
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
    words = [os.fsdecode(word) for word in (program, *arguments)]
    is_command = COMPLETE_VARIABLE in env or not LOADED.isdisjoint(words[1:2])
    kind = "command" if is_command else _KINDS.get("".join(words[1:2]))
    if kind is None or _starts_otherwise(env):
        warm, call = None, b""
    else:
        warm = _warm(program, kind)
        call = warm.encoded(arguments, env, cwd)
    if warm is None or len(call) > _MOST_BYTES:
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
    if arguments[0] not in ("daemon", "http", "serve") or _starts_otherwise(env):
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


def _serve(calls: socket.socket) -> int:
    """Fork for each call, and tell how each of the processes ends. Returns in the one that runs a call, which
    call it is."""
    number = 0
    forking = os.getpid()
    running: dict[int, tuple[int, int]] = {}
    poll = select.poll()
    poll.register(calls, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != calls.fileno():
                poll.unregister(ready)
                _tell_end(ready, *running.pop(ready))
                continue
            call, descriptors, _, _ = socket.recv_fds(calls, 2 * _MOST_BYTES, 4)
            if not call:  # the caller is gone
                os._exit(0)
            *streams, status = descriptors
            if (pid := os.fork()) == 0:
                calls.close()
                for descriptor in (status, *running, *(theirs for _, theirs in running.values())):
                    os.close(descriptor)
                _become(json.loads(call), streams, forking)
                return number
            number += 1
            for descriptor in streams:
                os.close(descriptor)
            os.write(status, b"%d " % pid)
            ended = os.pidfd_open(pid)
            running[ended] = pid, status
            poll.register(ended, select.POLLIN)


def _tell_end(ended: int, pid: int, status: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(status, b"%d" % code)
    os.close(status)
    os.close(ended)


def _end_with(parent: int) -> None:
    """Be killed when ``parent``, whose child this is, ends, however it ends."""
    if not end_with_parent(parent, signal.SIGKILL):
        os._exit(1)


def _become(call: list[Any], streams: Sequence[int], forking: int) -> None:
    """Be a process that was started like this."""
    _end_with(forking)
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


def _end(run: Callable[[], int]) -> NoReturn:
    """Run it and end with its status, without taking apart all that is loaded: that would copy each page of
    it."""
    try:
        status = run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    with contextlib.suppress(OSError, ValueError):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


class _Part:
    """What ``kvstore serve`` uses of :class:`subprocess.Popen` to start its two parts, made by a fork."""

    def __init__(self, command: list[str], *, pass_fds: Sequence[int], **_: Any) -> None:
        assert command[1:4] == ["-P", "-m", _CHILD], command
        said, says = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(says, 2)
            _become_part(command, pass_fds)
        os.close(says)
        self.stderr = io.FileIO(said)

    def wait(self) -> int:
        """Its status, once it has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _become_part(command: list[str], kept: Sequence[int]) -> NoReturn:
    """Give up what an exec would have taken from the process, and run the part to its end."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor in {int(each.name) for each in Path("/proc/self/fd").iterdir()} - {0, 1, 2, *kept}:
        with contextlib.suppress(OSError):  # the one of the list itself
            os.close(descriptor)
    _show(command)
    sys.argv[:] = [command[3], *command[4:]]
    _end(lambda: import_module(_CHILD).main(command[4:]))


def _show(command: list[str]) -> None:
    """Have ``ps`` show this command line, or as much of it as the process's own was long."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    first, end = int(stat[45]), int(stat[46])
    line = "\0".join(command).encode()[: end - first - 1]
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(first)
        memory.write(line.ljust(end - first, b"\0"))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        import_module(name)
    gc.freeze()  # for the same reason
    number = _serve(socket.socket(fileno=int(sys.argv[1])))
    if sys.argv[1:2] == ["serve"]:
        supervisor = import_module("kvstore_cli.serve.supervisor")
        supervisor.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": _Part})
    if sys.argv[1:2] in (["daemon"], ["http"], ["serve"]) and number % _WHOLE_ENDS == 0:
        # taken apart, as always: this is where a socket too many shows
        sys.exit(main())
    _end(main)
