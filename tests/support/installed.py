"""An environment with the built distribution in it, one extra, and only what these declare."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions
from importlib.metadata import distribution as here
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.servers import Serve, clean_environment

NAME = "kvstored"
WARNINGS = "error,ignore::ResourceWarning"
"""For ``PYTHONWARNINGS``: every one is an error, but for what a process has open when it ends."""

CLIENT = """
import asyncio
import kvstore_client
from kvstore_client import AsyncClient, Client, Mirror, Subscription

with Client() as client, Subscription(since=0) as subscription, Mirror(prefixes=["k"]) as mirror:
    client.put("k/1", "v")
    with client.transaction() as transaction:
        transaction.put("k/2", transaction.get("k/1").value)
    print(next(iter(subscription)).key, mirror["k/1"].value, client.get("k/2").value)

async def read():
    async with AsyncClient() as client:
        return (await client.get("k/2")).value

print(asyncio.run(read()), kvstore_client.__version__)
for name in kvstore_client.__all__:
    getattr(kvstore_client, name)
"""
"""A program that uses the native client, on a daemon with an empty store."""


class Installed:
    """``bin`` of the environment, and how to run what is there."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self._home = folder

    def run(self, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a folder of its own, with no variable of ours but these."""
        return subprocess.run(
            [self.bin / program, *arguments],
            cwd=self._home,
            env=clean_environment(self._home, **variables),
            capture_output=True,
            text=True,
            check=False,
        )


@contextmanager
def serving(installed: Installed, folder: Path, **options: Any) -> Iterator[Serve]:
    """A ready ``kvstore serve`` of an environment, in which a warning is an error; it has to end well."""
    server = Serve(folder, {"workers": 1, **options}, {"PYTHONWARNINGS": WARNINGS})
    server.program = str(installed.bin / "kvstore")
    try:
        yield server.start()
    finally:
        server.stop()


def install(file: Path, extra: str, folder: Path) -> Installed:
    """Install a wheel into an empty environment. What it and its extra declare is linked from this one."""
    venv.create(folder, symlinks=True)
    command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    # nor compiled: most of it is never imported
    subprocess.run([*command, "--no-deps", "--no-index", "--no-compile", file], check=True)
    library = next(folder.glob("lib/python*/site-packages"))
    ours = next(each for each in distributions(path=[str(library)]) if each.name == NAME)
    for needed in _closure(ours, extra):
        _link(needed, library)
    return Installed(folder)


def install_by_pip(
    python: Path, file: Path, extra: str, folder: Path, constraints: Iterable[str] = ()
) -> Installed:
    """Have ``python`` make an empty environment, and its pip install a wheel or an sdist with what pip finds
    for it today, within the constraints."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    wanted = f"{file}[{extra}]" if extra else file
    limits = folder / "constraints.txt"
    limits.write_text("".join(f"{constraint}\n" for constraint in constraints))
    subprocess.run([folder / "bin" / "pip", "install", "-qq", "-c", limits, wanted], check=True)
    return Installed(folder)


def _closure(root: Distribution, extra: str) -> Iterator[Distribution]:
    """What is declared, directly or not."""
    seen = {(NAME, extra)}
    left = [(root, extra)]
    while left:
        current, chosen = left.pop()
        for requirement in map(Requirement, current.requires or ()):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": chosen}):
                continue
            name = canonicalize_name(requirement.name)
            found = root if name == NAME else here(name)
            for wanted in {"", *requirement.extras} - {each for which, each in seen if which == name}:
                seen.add((name, wanted))
                left.append((found, wanted))
                if found is not root and wanted == "":
                    yield found


def _link(needed: Distribution, library: Path) -> None:
    for file in needed.files or ():
        if ".." in file.parts:  # scripts
            continue
        link = library / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(str(file.locate())))
