"""Write constraints.txt: one version, with the hashes of all its files, for every package that
running, testing or building kvstore installs.

Works in a temporary virtual environment, so that the tool that resolves is not itself among the
packages, and with the package index alone: indexes and folders of wheels that a machine's
configuration adds are left out, because their files exist nowhere else.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "constraints.txt"
RESOLVER = "pip-tools>=7.4"
RESOLVE = [
    *("-m", "piptools", "compile", "--quiet"),
    *("--generate-hashes", "--strip-extras", "--allow-unsafe"),
    *("--no-header", "--no-annotate"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"),
    *("--output-file=all.txt", "all.in"),
]

HEADER = """\
# Every package that running, testing or building kvstore installs, with the hashes of its files for
# all platforms. Written by 'make constraints' from pyproject.toml; do not edit.
"""


def wanted() -> list[str]:
    """The requirements of the package, of its development group and of its build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
    ]


def environment() -> dict[str, str]:
    """The environment with no source of packages in it but pip's own default."""
    sources = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT")
    kept = {name: value for name, value in os.environ.items() if name not in sources}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


def main() -> None:
    """Resolve and write, or leave the old file as it was and fail."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        (work / "all.in").write_text("\n".join(wanted()) + "\n")
        for arguments in (["-m", "pip", "install", "--quiet", RESOLVER], RESOLVE):
            subprocess.run([python, *arguments], cwd=work, env=environment(), check=True)
        TARGET.write_text(HEADER + (work / "all.txt").read_text())


if __name__ == "__main__":
    main()
