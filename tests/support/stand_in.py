"""A stand-in for ``kvstore`` in shells, which start it some two hundred times.

Asked for completions, or for the script that asks for them, it has the command run in a process that has
already started. Of another line it prints the words, with NUL between them, as the shell passed them.
"""

from __future__ import annotations

import ast
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.servers import kvstore_command
from support.warm import warm_command

_PROGRAM = """\
#!{python} -IS
import _socket, os, sys
if "_KVSTORE_COMPLETE" not in os.environ and sys.argv[1:2] != ["completion"]:
    os.write(1, "\\0".join(sys.argv[1:]).encode())
    sys.exit()
asking = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
asking.connect({address!r})
asking.sendall(repr((sys.argv[1:], dict(os.environ), os.getcwd())).encode())
asking.shutdown(_socket.SHUT_WR)
while answer := asking.recv(65536):
    os.write(1, answer)
"""


class _Answer(socketserver.StreamRequestHandler):
    """Runs the command as the stand-in was called, and gives it what the command printed."""

    def handle(self) -> None:
        words, environment, folder = ast.literal_eval(self.rfile.read().decode())
        # for the shell; the command takes its words for UTF-8 under any
        del environment["LC_ALL"]
        done = warm_command(*kvstore_command()).run(words, stdin=b"", env=environment, cwd=folder, timeout=60)
        self.wfile.write(done.stdout)


@contextmanager
def stand_in(folder: Path) -> Iterator[None]:
    """A ``folder`` with the stand-in."""
    address = f"\0kvstore-tests{folder}"[-100:]
    with socketserver.UnixStreamServer(address, _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        program = folder / "kvstore"
        program.write_text(_PROGRAM.format(python=sys.executable, address=address))
        program.chmod(0o755)
        yield
        server.shutdown()
        thread.join()
