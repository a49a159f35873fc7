"""The Pythons of this machine: those on the PATH, and those of pyenv and uv, which need not be there.

``PYTHONS`` names others instead, separated by spaces.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

OLDEST = (3, 11)
_ASK = "import ensurepip, sys, venv; print(*sys.version_info[:2])"


def interpreters() -> dict[str, Path]:
    """One Python of each version that kvstore runs on, ``"3.13"``, oldest first. What does not start, or
    cannot make environments, is left out; but where ``PYTHONS`` names it, that is an error."""
    named = shlex.split(os.environ.get("PYTHONS", ""))
    found: dict[tuple[int, int], Path] = {}
    for python in map(Path, named) if named else _installed():
        version = _version(python)
        assert version or not named, f"{python} of PYTHONS does not start, or has no venv or ensurepip"
        if version is not None and version >= OLDEST:
            found.setdefault(version, python)
    return {f"{major}.{minor}": found[major, minor] for major, minor in sorted(found)}


def _installed() -> Iterator[Path]:
    home = Path.home()
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    folders += Path(os.environ.get("PYENV_ROOT", home / ".pyenv")).glob("versions/*/bin")
    folders += Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python")).glob("*/bin")
    for folder in folders:
        yield from (file for file in folder.glob("python3.*") if re.fullmatch(r"python3\.\d+", file.name))


def _version(python: Path) -> tuple[int, int] | None:
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=False)
    except OSError:
        return None
    if done.returncode != 0:
        return None
    major, minor = done.stdout.split()
    return int(major), int(minor)
