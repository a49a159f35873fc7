"""What all tests share: real processes, free ports, and waiting without sleeping."""

from support.ports import free_port
from support.servers import Daemon, Facade, Serve, Server, Service, kvstore_command
from support.waiting import wait_until

__all__ = [
    "Daemon",
    "Facade",
    "Serve",
    "Server",
    "Service",
    "free_port",
    "kvstore_command",
    "wait_until",
]
