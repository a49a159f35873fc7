"""The distribution that these packages are installed from: its name, its version, and its extras."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

NAME = "kvstored"

EXTRAS = {
    "cli": ("click", "prometheus_client", "rich"),
    "server": ("falcon", "gevent", "lmdb", "waitress"),
    "etcd": ("google", "grpc"),
}
"""What each extra adds to the client, by the names under which it is imported."""


def installed_version() -> str:
    """The version of the installed distribution."""
    return version(NAME)


def extra_of(module: str) -> str | None:
    """The extra that brings a module, or one inside it; None for a module of no extra."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def how_to_install(extra: str) -> str:
    """The command that adds an extra."""
    return f"pip install '{NAME}[{extra}]'"


def require(extra: str) -> None:
    """Raise ModuleNotFoundError, as importing it would, for a module of the extra that is not installed."""
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
