"""Take away what each operation and each route needs, one after another, and see that a test notices.

Each row of OPERATIONS and ENDPOINTS that needs something is changed, in a copy of the packages, to need
nothing, and each that needs several things to need one less. The tests of access are run against that copy
until one fails. Exits with 1, and names what was not noticed, if there is such a thing.
usage: tools/needs_mutations.py [WORD...]    only what has one of these words in its name
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "client", "daemon", "http", "cli")
TESTS = tuple(
    f"tests/access/test_{name}.py" for name in ("access_model", "permission", "daemon_access", "http_tokens")
)
"""The first one notices nearly everything, and soon."""

OPERATIONS = "core/kvstore_core/operations.py"
ENDPOINTS = "http/kvstore_http/routes.py"


class Mutation(NamedTuple):
    """What is taken away, in which file, which expression is replaced there, and by what."""

    name: str
    file: str
    place: ast.expr
    text: str


def mutations() -> Iterator[Mutation]:
    """All of them."""
    for row in _calls(OPERATIONS, "Operation"):
        needs = row.args[2]
        if ast.unparse(needs) != "lambda _op: ()":
            yield Mutation(f"op {_text(row.args[0])}", OPERATIONS, needs, "lambda _op: ()")
        if isinstance(needs, ast.Call) and len(needs.args) > 1:
            for verb in needs.args:
                rest = ", ".join(repr(_text(each)) for each in needs.args if each is not verb)
                name = f"op {_text(row.args[0])}: {_text(verb)}"
                yield Mutation(name, OPERATIONS, needs, f"OnKey({rest})")
    for node in ast.walk(ast.parse((ROOT / OPERATIONS).read_text())):
        if isinstance(node, ast.Yield) and node.value is not None:
            yield Mutation(f"line {node.lineno}: {ast.unparse(node)}", OPERATIONS, node, "()")
    for row in _calls(ENDPOINTS, "Endpoint"):
        if _text(row.args[2]) != "public":
            yield Mutation(f"{_text(row.args[0])} {_text(row.args[1])}", ENDPOINTS, row.args[2], '"public"')


def _calls(file: str, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def _text(node: ast.expr) -> str:
    return ast.literal_eval(node) if isinstance(node, ast.Constant) else ast.unparse(node)


def mutated(mutation: Mutation) -> str:
    """The file's text with the mutation."""
    lines = (ROOT / mutation.file).read_bytes().splitlines(keepends=True)
    place = mutation.place
    before = b"".join(lines[: place.lineno - 1]) + lines[place.lineno - 1][: place.col_offset]
    after = lines[place.end_lineno - 1][place.end_col_offset :] + b"".join(lines[place.end_lineno :])
    return (before + mutation.text.encode() + after).decode()


def survives(mutation: Mutation | None) -> bool:
    """Whether all tests pass although it was made; None makes none."""
    with tempfile.TemporaryDirectory(prefix="kvstore-mutation-") as folder:
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package, Path(folder, package), ignore=shutil.ignore_patterns("__pycache__")
            )
        if mutation is not None:
            Path(folder, mutation.file).write_text(mutated(mutation))
        path = os.pathsep.join(str(Path(folder, package)) for package in PACKAGES)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *TESTS],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    # 1: a test failed. Anything else, such as a copy that does not import, shows nothing.
    noticed = done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    name = "nothing taken away" if mutation is None else mutation.name
    _say(f"{'noticed' if noticed else 'passed'}: {name}: {'; '.join(failed)[:150]}")
    return not noticed


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(*words: str) -> int:
    """Try all mutations, or those that have one of ``words`` in their names."""
    chosen = [each for each in mutations() if not words or any(word in each.name for word in words)]
    if not survives(None):
        _say("the tests fail as it is: mend that first")
        return 2
    survivors = [each.name for each in chosen if survives(each)]
    _say(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations were noticed by a test")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
