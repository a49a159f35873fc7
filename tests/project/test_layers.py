"""Each library has one home, and the six packages only look inwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import click
import pytest

from kvstore_cli.command_line.group import cli

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "kvstore_core": ROOT / "core",
    "kvstore_client": ROOT / "client",
    "kvstore_daemon": ROOT / "daemon",
    "kvstore_http": ROOT / "http",
    "kvstore_cli": ROOT / "cli",
    "kvstore_contrib": ROOT / "contrib",
}

# library -> the modules (by prefix) that may import it; everything else in the packages may not
HOMES = {
    "lmdb": ("kvstore_daemon.storage",),
    "google": ("kvstore_daemon.storage.etcd_store",),
    "grpc": ("kvstore_daemon.storage.etcd_store",),
    "falcon": ("kvstore_http",),
    "waitress": ("kvstore_http",),
    "gevent": ("kvstore_http",),
    "zmq": (
        "kvstore_core.connection_monitor",
        "kvstore_core.curve",
        "kvstore_client",
        "kvstore_daemon",
        "kvstore_http",
    ),
    "click": ("kvstore_cli",),
    "rich": ("kvstore_cli",),
    # the facade writes the format, `kvstore top` reads it
    "prometheus_client": ("kvstore_http", "kvstore_cli"),
    "cachelib": ("kvstore_contrib.cachelib",),
    "celery": ("kvstore_contrib.celery",),
    "kombu": ("kvstore_contrib.celery",),
    "django": ("kvstore_contrib.django",),
    "pytest": ("kvstore_contrib.testing",),
}

# package -> the packages of ours that it may import
LAYERS = {
    "kvstore_core": set(),
    "kvstore_client": {"kvstore_core"},
    "kvstore_daemon": {"kvstore_core"},
    "kvstore_http": {"kvstore_core"},
    # the command starts the servers
    "kvstore_cli": {"kvstore_core", "kvstore_client", "kvstore_daemon", "kvstore_http"},
    # the testing room starts servers; the backends use the client alone
    "kvstore_contrib": {"kvstore_core", "kvstore_client", "kvstore_daemon", "kvstore_cli"},
}

# package -> its rooms from the top down, each a folder or some modules: a room imports those below it
ROOMS = {
    "kvstore_core": (
        "follower snapshot_merge",
        "wire filters",
        "operations curve predicates",
        "access",
        "model",
        "connection_monitor process backoff",
        "errors",
        "addresses digest distribution json_depth limits media_types units wall_clock",
    ),
    "kvstore_client": (
        "aio",
        "mirroring",
        "*",  # all others of the top
        "transactions",
        "multi_request",
        "commands",
        "transport",
        "arguments",
    ),
    "kvstore_daemon": (
        "main",
        "server",
        "expiry publisher",
        "requests",
        "subscriber_list",
        "backups bind group_commit subscriptions",
        "peer_limits",
        "access",
        "status record_fields",
        "storage.offline",
        "storage.etcd_store",
        "storage.lmdb_store",
        "storage",
        "event_loop process_usage settings",
    ),
    "kvstore_http": (
        "main",
        "workers",
        "app",
        "resources",
        "server",
        "inspection",
        "streaming",
        "access",
        "backend",
        "routes",
        "protocol",
        "metrics greenlet_pool large_work settings",
    ),
    "kvstore_cli": (
        "docs_tables",
        "__main__",
        "main",
        "commands",
        "access doctor top transfer subscribe serve",
        "command_line",
        "http_client",
        "config",
        "files",
        "terminal",
    ),
    "kvstore_contrib": (
        "testing",
        "cachelib celery django",
        "addresses batches values",
    ),
}

# what starts servers, or tells how they would be started
SERVERS = {"serve", "daemon", "http", "config"}
# what a command that only asks the service must not load: each costs more time than the command takes
HEAVY = {
    "lmdb",
    "grpc",
    "google",
    "falcon",
    "waitress",
    "gevent",
    "zmq",
    "rich",
    "prometheus_client",
    "kvstore_daemon",
    "kvstore_http",
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the six packages: its dotted name and its file."""
    for package, folder in PACKAGES.items():
        for file in (folder / package).rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), file


MODULES = dict(modules())


def imports(module: str) -> Iterator[str]:
    """The absolute names that a module imports, wherever in it."""
    file = MODULES[module]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{file}, line {node.lineno}: imports are absolute, so that this test reads them"
            )
            assert node.module is not None
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            # the module, unless all that is taken of it are modules themselves
            if not MODULES.keys() >= set(inner):
                yield node.module
            yield from MODULES.keys() & set(inner)


@pytest.fixture(scope="module")
def imported() -> list[tuple[str, str]]:
    """Each module with each name that it imports."""
    return [(module, name) for module in MODULES for name in imports(module)]


Imported = list[tuple[str, str]]


@pytest.fixture(scope="module")
def between(imported: Imported) -> dict[str, set[str]]:
    """Each module with the modules of ours that it imports."""
    found: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, name in imported:
        if name in MODULES and name != module:
            found[module].add(name)
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


def test_the_walk_sees_all_packages(imported: Imported) -> None:
    assert {top(module) for module in MODULES} == {top(module) for module, _ in imported} == set(PACKAGES)


@pytest.mark.parametrize("library", HOMES)
def test_each_library_stays_in_its_home(library: str, imported: Imported) -> None:
    users = {module for module, name in imported if top(name) == library}
    assert users
    strangers = {module for module in users if not module.startswith(HOMES[library])}
    assert not strangers, f"the home of {library} is {HOMES[library]}"


@pytest.mark.parametrize("package", LAYERS)
def test_packages_only_look_inwards(package: str, imported: Imported) -> None:
    allowed = LAYERS[package] | {package}
    outward = {
        (module, name)
        for module, name in imported
        if top(module) == package and top(name) in PACKAGES and top(name) not in allowed
    }
    assert not outward


def level(module: str) -> int:
    """How far down in its package the room of a module is; the package's own face is above all."""
    package, _, inner = module.partition(".")
    found = [
        (len(name.strip("*")), number)
        for number, room in enumerate(ROOMS[package])
        for name in room.split()
        if f"{inner}.".startswith(f"{name}.") or (name == "*" and inner and "." not in inner)
    ]
    assert found or not inner, f"{module} is in no room of ROOMS"
    return max(found, default=(0, -1))[1]


def test_every_room_is_there() -> None:
    for package, rooms in ROOMS.items():
        for name in " ".join(rooms).split():
            assert name == "*" or f"{package}.{name}" in MODULES, f"{package}.{name}"
    assert list(map(level, MODULES))  # which finds one for each


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_what_is_below_them(package: str, between: dict[str, set[str]]) -> None:
    upward = {
        f"{module} -> {name}"
        for module, names in between.items()
        for name in names
        if top(module) == top(name) == package and level(module) > level(name)
    }
    assert not upward


def test_no_modules_import_each_other(between: dict[str, set[str]]) -> None:
    """Not for types alone either: what is hidden behind TYPE_CHECKING is a circle to who reads it."""
    TopologicalSorter(between).prepare()  # raises CycleError


def test_a_class_has_a_name_of_its_own() -> None:
    """Over all packages, so that a name can be searched for; what a class is written as does not count."""
    homes: dict[str, set[str]] = {}
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), set()).add(module)
    shared = {name for name, modules in homes.items() if len(modules) > 1}
    assert not shared, {name: homes[name] for name in shared}


def test_no_command_imports_another(imported: Imported) -> None:
    commands = "kvstore_cli.commands."
    assert not {
        (module, name)
        for module, name in imported
        if module.startswith(commands) and name.startswith(commands)
    }


ENGINES = {
    ("kvstore_daemon.main", f"kvstore_daemon.storage.{module}")
    for module in ("lmdb_store.engine", "etcd_store.engine", "offline.backup")
}
"""Where the daemon opens the engine that it was started with, and gets what backs its store up."""


def test_nothing_above_the_engine_names_an_engine(imported: Imported) -> None:
    behind = {
        (module, name)
        for module, name in imported
        if top(module) == "kvstore_daemon" and not module.startswith("kvstore_daemon.storage.")
        if (module, name) not in ENGINES
        if name.startswith("kvstore_daemon.storage.") and name != "kvstore_daemon.storage.interface"
    }
    assert not behind, "they look behind the engine's interface"


CLIENT_COMMANDS = [name for name in cli.list_commands(click.Context(cli)) if name not in SERVERS]

LOADED_BY = """
import os, sys
from kvstore_cli.main import main
for command in sys.argv[1:]:
    child = os.fork()
    if not child:
        sys.argv = ["kvstore", command, "--help"]
        main()
        print("LOADED", command, *sys.modules, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{command} failed")
"""
"""Each command in a process of its own, since what the modules of ours import may import more."""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """For each command what its help has loaded, at the top of it."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED_BY, *CLIENT_COMMANDS], capture_output=True, text=True, check=True
    )
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("LOADED ")]
    return {command: set(map(top, modules)) for command, *modules in lines}


@pytest.mark.parametrize("command", CLIENT_COMMANDS)
def test_a_command_that_asks_the_service_loads_nothing_heavy(
    command: str, loaded: dict[str, set[str]]
) -> None:
    assert "click" in loaded[command]
    assert not loaded[command] & HEAVY


@pytest.mark.parametrize("command", ["get", "put", "list", "delete", "incr"])
def test_a_command_for_keys_loads_nothing_slow_of_python(command: str, loaded: dict[str, set[str]]) -> None:
    assert not loaded[command] & {"pathlib", "ssl"}


LOADED_BY_SERVERS = """
import sys
import kvstore_daemon.main, kvstore_http.main, kvstore_http.app, kvstore_http.workers.worker
print(*sys.modules)
"""


def test_a_server_imports_nothing_later() -> None:
    """An import fails where no more files can be opened, and a server has to outlast that."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED_BY_SERVERS], capture_output=True, text=True, check=True
    )
    deferred = {
        name
        for module, file in MODULES.items()
        if top(module) in ("kvstore_core", "kvstore_daemon", "kvstore_http") and not module.endswith(".main")
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert "hashlib" in deferred
    assert not deferred - set(done.stdout.split())


def test_the_folder_http_does_not_shadow_pythons_http() -> None:
    assert not list(ROOT.glob("*/__init__.py")), "the folders at the top are no packages"
    program = "import http.client; print(http.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert str(ROOT / "http") not in done.stdout
