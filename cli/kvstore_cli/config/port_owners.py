"""Whose processes listen on a port of this machine, as proc(5) has it."""

from __future__ import annotations

_LISTENS = b"0A"


def owners_of_port(port: int) -> set[int]:
    """The users whose sockets listen on a TCP port, whatever the address; empty where nobody does, or the
    system does not tell."""
    owners = set()
    written = b":%04X " % port  # few lines of thousands have it
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, "rb") as file:  # noqa: PTH123 - pathlib is slow to import
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            if written not in line:
                continue
            _, local, _, state, _, _, _, user, *_ = line.split()
            if state == _LISTENS and int(local.rpartition(b":")[2], 16) == port:
                owners.add(int(user))
    return owners
