"""kvstore.js in Node against a real service: its own tests, and what happens when processes go away."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import kvstore_http
from support.markdown import ROOT, blocks
from support.programs import require_program
from support.proxy import CuttingProxy
from support.servers import Service, wait_until
from support.session import Session

pytestmark = pytest.mark.slow

SERVED = Path(kvstore_http.__file__).parent / "ui" / "kvstore.js"

FOLLOWER = """
const { connect } = await import(process.env.KVSTORE_JS);
for await (const item of connect({ url: process.env.KVSTORE_URL }).watch(JSON.parse(process.argv[2]))) {
  console.log(JSON.stringify(item));
}
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is served, under a name by which any Node knows a module; Node 18 does not look inside."""
    return Path(shutil.copy(SERVED, tmp_path_factory.mktemp("module") / "kvstore.mjs"))


@pytest.fixture(scope="module", autouse=True)
def environment(module: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVSTORE_JS", str(module))
        patch.setenv("NODE_NO_WARNINGS", "1")  # Node 18 warns of fetch
        yield


def to(url: str) -> dict[str, str]:
    return {**os.environ, "KVSTORE_URL": url}


def test_the_tests_of_the_module_pass(service: Service) -> None:
    # without --test, which runs it in a process of its own that would outlive this one
    command = [require_program("node"), ROOT / "js/test/kvstore.test.mjs"]
    done = subprocess.run(
        command, env=to(service.url), capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.findall(r"^(?:ok \d+ -|✔) ", done.stdout, re.MULTILINE)
    assert len(passed) > 20, done.stdout


class Told(list[dict[str, Any]]):
    """The lines of a file that is being written, each JSON."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._offset = 0

    def look(self) -> Told:
        """The same, with what has come since."""
        *lines, _ = self._file.read_bytes()[self._offset :].split(b"\n")
        self._offset += sum(len(line) + 1 for line in lines)
        self.extend(map(json.loads, lines))
        return self


@contextmanager
def following(url: str, folder: Path, **options: Any) -> Iterator[Told]:
    """A program that follows; the list grows by what it is told."""
    program, output = folder / "follower.mjs", folder / "told"
    program.write_text(FOLLOWER)
    with (
        output.open("wb") as sink,
        subprocess.Popen(
            [require_program("node"), program, json.dumps(options)], env=to(url), stdout=sink
        ) as process,
    ):
        try:
            yield Told(output)
        finally:
            process.kill()


def test_restarts_and_kills_lose_nothing(service: Service, tmp_path: Path) -> None:
    with following(service.url, tmp_path, prefix="t/") as told:
        wait_until(lambda: told.look(), what="the stream is there")

        def write(number: int) -> None:
            with closing(Session(service.url)) as session:
                wait_until(lambda: session.get("/readyz").status == 200, what="the daemon is reached")
                assert session.put(f"/v1/kv/t/{number}", b"x").status == 201

        write(0)
        service.facade.restart()
        write(1)
        service.facade.kill()
        service.daemon.kill()
        service.daemon.start()
        service.facade.start()
        write(2)
        service.daemon.restart()
        write(3)
        wait_until(lambda: any(item.get("key") == "t/3" for item in told.look()), what="the last", timeout=60)
        assert [item["key"] for item in told if item["op"] == "put"] == ["t/0", "t/1", "t/2", "t/3"]
        assert {item["op"] for item in told} == {"put", "sync"}


def test_connections_that_are_cut_anywhere_lose_nothing_and_repeat_nothing(
    service: Service, tmp_path: Path
) -> None:
    with CuttingProxy(service.url, cut_after_bytes=4_000) as proxy:
        url = proxy.endpoint.replace("tcp://", "http://")
        with (
            following(url, tmp_path, prefix="t/", since=0) as told,
            closing(Session(service.url)) as session,
        ):
            expected = []
            for number in range(120):
                ops = [
                    {"op": "put", "key": f"t/{part}", "value": "é" * (number % 50)}
                    for part in range(1 + number % 3)
                ]
                answer = session.post("/v1/batch", {"atomic": True, "ops": ops}).json
                expected += [(each["revision"], index) for index, each in enumerate(answer["results"])]

            def seen() -> list[tuple[int, int]]:
                return [(item["revision"], item["index"]) for item in told.look() if item["op"] == "put"]

            wait_until(lambda: len(seen()) >= len(expected), what="all events", timeout=60)
            assert seen() == expected
        assert proxy.connections > 3


def test_the_examples_run(service: Service, tmp_path: Path, module: Path) -> None:
    """Those of the documentation that need no browser, one after the other, print what they say."""
    shown = [block for block in blocks((ROOT / "docs/javascript.md").read_text()) if block.language == "js"]
    code = "".join(block.text for block in shown if "In a page" not in block.headings)
    text = code.replace('"kvstore"', f'"{module}"').replace("http://127.0.0.1:5000", service.url)
    (tmp_path / "example.mjs").write_text(text)
    done = subprocess.run(
        [require_program("node"), tmp_path / "example.mjs"],
        env=to(service.url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.splitlines() == re.findall(r"// prints (.*)", code)
