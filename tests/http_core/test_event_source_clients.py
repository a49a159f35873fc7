"""The event sources that people install from npm, across a restart: nothing lost, nothing twice."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from support.programs import require_program
from support.servers import Service
from support.session import Session

PACKAGES = {"event-source-polyfill": "1.0.31", "eventsource": "4.1.1"}
PROGRAM = """
const [name, url] = process.argv.slice(2);
const known = await import(name);
const EventSource = known.EventSourcePolyfill ?? known.default?.EventSourcePolyfill ?? known.EventSource;
const source = new EventSource(url);
const print = (line) => process.stdout.write(JSON.stringify(line) + "\\n");
source.addEventListener("put", (event) => print(["put", JSON.parse(event.data).key]));
source.addEventListener("sync", () => print(["sync"]));
source.onerror = () => print(source.readyState === 2 ? ["dead"] : ["error"]);
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages and the program."""
    npm = require_program("npm")
    folder = tmp_path_factory.mktemp("clients")
    (folder / "package.json").write_text(json.dumps({"type": "module", "dependencies": PACKAGES}))
    (folder / "program.mjs").write_text(PROGRAM)
    install = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=240)
    return folder


def lines(output: IO[bytes]) -> Iterator[list[str]]:
    for line in output:
        yield json.loads(line)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_event_source_of_npm_resumes_where_it_was(service: Service, folder: Path, package: str) -> None:
    node = require_program("node")
    url = f"{service.url}/v1/subscribe?prefix=npm/"
    command = [node, "program.mjs", package, url]
    with (
        closing(Session(service.url)) as session,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as process,
    ):
        try:
            assert process.stdout is not None
            told = lines(process.stdout)
            assert next(told) == ["sync"]
            for number in range(3):
                session.put(f"/v1/kv/npm/{number}", b"v")
            assert [next(told) for _ in range(3)] == [["put", f"npm/{number}"] for number in range(3)]
            service.facade.stop()
            service.facade.start()
            session.close()
            for number in range(3, 8):
                session.put(f"/v1/kv/npm/{number}", b"v")
            seen = []
            while ["put", "npm/7"] not in seen:
                seen.append(next(told))
        finally:
            process.kill()
    assert [line for line in seen if line[0] == "put"] == [["put", f"npm/{number}"] for number in range(3, 8)]
    assert ["dead"] not in seen
