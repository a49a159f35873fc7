"""Write constraints.txt: one version, with the hashes of all its files, for every package that
running, testing or building kvstore installs; requirements.txt, the part of it that the image is built
from; benchmarks/constraints.txt for what 'make bench' installs beside them; and contrib/constraints.txt and
docs/constraints.txt for the environments in which the frameworks' own suites run, and 'make docs'.

    python tools/constraints.py          all of them
    python tools/constraints.py image    requirements.txt, which fits to constraints.txt as it is
    python tools/constraints.py bench    the benchmark's, which does so too
    python tools/constraints.py contrib  contrib/constraints.txt, which does so too
    python tools/constraints.py docs     docs/constraints.txt, which does so too

Works in a temporary virtual environment, so that the tool that resolves is not itself among the
packages, and with the package index alone: indexes and folders of wheels that a machine's
configuration adds are left out, because their files exist nowhere else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "constraints.txt"
IMAGE = ROOT / "requirements.txt"
BENCH = ROOT / "benchmarks" / "constraints.txt"
CONTRIB = ROOT / "contrib" / "constraints.txt"
DOCS = ROOT / "docs" / "constraints.txt"
RESOLVER = "pip-tools>=7.4"
RESOLVE = [
    *("-m", "piptools", "compile", "--quiet"),
    *("--generate-hashes", "--strip-extras", "--allow-unsafe"),
    *("--no-header", "--no-annotate"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"),
    *("--constraint=fixed.txt", "--output-file=all.txt", "all.in"),
]

HEADER = """\
# Every package that {what} installs, with the hashes of its files for
# all platforms. Written by 'make constraints' from pyproject.toml; do not edit.
"""


class Target(NamedTuple):
    """A file, what it is for, what is asked for in it, and the versions that are settled already."""

    file: Path
    what: str
    wanted: list[str]
    fixed: list[str]


PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def base() -> Target:
    """The requirements of the package and its extras, of its development group and of its build."""
    wanted = [*_run_and_built_with(), *_extra("test"), *PROJECT["dependency-groups"]["dev"]]
    return Target(BASE, "running, testing or building kvstore", wanted, [])


def image() -> Target:
    """The requirements of the package, of the extras that run it, and of its build."""
    return Target(IMAGE, "running or building kvstore", _run_and_built_with(), _settled())


def bench() -> Target:
    """What the benchmark compares with, into the same environment."""
    return Target(BENCH, "'make bench'", PROJECT["dependency-groups"]["bench"], _settled())


def contrib() -> Target:
    """The client, and the frameworks that have backends of kvstore, in an environment of their own."""
    wanted = [
        *PROJECT["project"]["dependencies"],
        *PROJECT["build-system"]["requires"],
        *PROJECT["dependency-groups"]["contrib"],
    ]
    return Target(CONTRIB, "the tests of contrib", wanted, _settled())


def docs() -> Target:
    """What renders the site, in an environment of its own."""
    return Target(DOCS, "'make docs'", PROJECT["dependency-groups"]["docs"], _settled())


def _run_and_built_with() -> list[str]:
    return [
        *PROJECT["project"]["dependencies"],
        *(line for extra in ("cli", "server", "etcd") for line in _extra(extra)),
        *PROJECT["build-system"]["requires"],
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["dependencies"],
    ]


def _extra(name: str) -> list[str]:
    """The requirements of an extra, without the extra of the project itself that it holds."""
    project = PROJECT["project"]
    lines = project["optional-dependencies"][name]
    return [line for line in lines if not line.startswith(f"{project['name']}[")]


def _settled() -> list[str]:
    return re.findall(r"^[a-z0-9.-]+==\S+", BASE.read_text(), re.MULTILINE)


def environment() -> dict[str, str]:
    """The environment with no source of packages in it but pip's own default."""
    sources = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT")
    kept = {name: value for name, value in os.environ.items() if name not in sources}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


def resolve(target: Target) -> None:
    """Resolve and write, or leave the old file as it was and fail."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        (work / "all.in").write_text("\n".join(target.wanted) + "\n")
        (work / "fixed.txt").write_text("\n".join(target.fixed) + "\n")
        for arguments in (["-m", "pip", "install", "--quiet", RESOLVER], RESOLVE):
            subprocess.run([python, *arguments], cwd=work, env=environment(), check=True)
        target.file.write_text(HEADER.format(what=target.what) + (work / "all.txt").read_text())


def main() -> None:
    """The others are resolved after the first, since they have to fit to it."""
    for target in (base, image, bench, contrib, docs):
        if sys.argv[1:] in ([], [target.__name__]):
            resolve(target())


if __name__ == "__main__":
    main()
