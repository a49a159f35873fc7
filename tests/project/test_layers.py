"""Each library has one home, and the four packages only look inwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kvstore_cli.main import cli

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "kvstore_client": ROOT / "client",
    "kvstore_daemon": ROOT / "daemon",
    "kvstore_http": ROOT / "http",
    "kvstore_cli": ROOT / "cli",
}

# library -> the modules (by prefix) that may import it; everything else in the packages may not
HOMES = {
    "lmdb": ("kvstore_daemon.engine",),
    "falcon": ("kvstore_http",),
    "waitress": ("kvstore_http",),
    "gevent": ("kvstore_http",),
    "zmq": ("kvstore_client", "kvstore_daemon", "kvstore_http"),
    "click": ("kvstore_cli",),
    "rich": ("kvstore_cli",),
    # the facade writes the format, `kvstore top` reads it
    "prometheus_client": ("kvstore_http", "kvstore_cli"),
}

# package -> the packages of ours that it may import
LAYERS = {
    "kvstore_client": set(),
    "kvstore_daemon": {"kvstore_client"},
    "kvstore_http": {"kvstore_client"},
    # the command starts the servers
    "kvstore_cli": {"kvstore_client", "kvstore_daemon", "kvstore_http"},
}

# what a command that only asks the service must not load: each costs more time than the command takes
# what starts servers, or tells how they would be started
SERVERS = {"serve", "daemon", "http", "config"}
HEAVY = {
    "lmdb",
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
    """Every module of the four packages: its dotted name and its file."""
    for package, folder in PACKAGES.items():
        for file in (folder / package).rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), file


MODULES = dict(modules())


def imports(tree: ast.AST) -> Iterator[str]:
    """The absolute names that ``tree`` imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute, so that this test reads them"
            assert node.module is not None
            yield node.module


def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(), str(MODULES[module]))


def top(name: str) -> str:
    return name.partition(".")[0]


def test_the_walk_sees_all_packages() -> None:
    assert {top(module) for module in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("module", MODULES)
def test_each_library_stays_in_its_home(module: str) -> None:
    for name in imports(parsed(module)):
        homes = HOMES.get(top(name))
        assert homes is None or module.startswith(homes), f"{module} imports {name}, whose home is {homes}"


@pytest.mark.parametrize("module", MODULES)
def test_packages_only_look_inwards(module: str) -> None:
    for name in imports(parsed(module)):
        if top(name) in PACKAGES and top(name) != top(module):
            assert top(name) in LAYERS[top(module)], f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name in MODULES if top(name) == "kvstore_daemon"])
def test_nothing_above_the_engine_names_an_engine(module: str) -> None:
    if module.startswith("kvstore_daemon.engine"):
        return
    engines = {"kvstore_daemon.engine", "kvstore_daemon.engine.registry"}
    inner = {name for name in imports(parsed(module)) if name.startswith("kvstore_daemon.engine.")}
    assert inner <= engines, f"{module} looks behind the engine's interface: {inner - engines}"


CLIENT_COMMANDS = [name for name in cli.list_commands(click.Context(cli)) if name not in SERVERS]


@pytest.mark.parametrize("command", CLIENT_COMMANDS)
def test_a_command_that_asks_the_service_loads_nothing_heavy(command: str) -> None:
    # As a process, since what the modules of ours import may import more.
    program = (
        f"import sys; sys.argv = ['kvstore', '{command}', '--help'];"
        "from kvstore_cli.main import main; main(); print('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(map(top, done.stdout.rpartition("LOADED")[2].split()))
    assert "click" in loaded
    assert not loaded & HEAVY


def test_reading_the_error_table_loads_neither_zmq_nor_orjson() -> None:
    program = "import sys, kvstore_client.errors; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"zmq", "orjson", "click"} & set(map(top, done.stdout.split()))


def test_the_folder_http_does_not_shadow_pythons_http() -> None:
    assert not list(ROOT.glob("*/__init__.py")), "the folders at the top are no packages"
    program = "import http.client; print(http.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert str(ROOT / "http") not in done.stdout
