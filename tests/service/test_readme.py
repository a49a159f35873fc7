"""The README's session is run as it is, against ``kvstore serve`` with an empty store."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.browser import open_browser
from support.markdown import ROOT, Block, blocks, looks_like, steps, table_rows
from support.servers import Serve, wait_until
from support.session import call, kv_path

README = (ROOT / "README.md").read_text()
WITH_ACCESS = "With access on"
ALL = [block for block in blocks(README) if "A session" in block.headings]
SESSION = [block for block in ALL if WITH_ACCESS not in block.headings]


def shown(language: str) -> list[Block]:
    """The session's blocks in a language."""
    return [block for block in SESSION if block.language == language]


@pytest.fixture
def serve(start_serve: Callable[..., Serve]) -> Serve:
    """What ``make run`` starts, on other ports."""
    return start_serve(workers=1)


def translated(text: str, serve: Serve) -> str:
    """``text`` with the addresses that it has in this test, in place of those that the README names."""
    return (
        text.replace("http://127.0.0.1:5000", serve.url)
        .replace("tcp://127.0.0.1:5555", serve.requests)
        .replace("tcp://127.0.0.1:5556", serve.changes)
    )


def run_in_shell(command: str, serve: Serve, folder: Path) -> str:
    """What a person sees who types ``command``."""
    done = subprocess.run(
        ["bash", "-c", translated(command, serve)],
        env={
            **serve.environment,
            "KVSTORE_URL": serve.url,
            "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        },
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )
    return done.stdout


def test_the_shell_session_gives_what_it_shows(serve: Serve, tmp_path: Path) -> None:
    check_session(shown("console"), serve, tmp_path)


def test_the_session_with_access_gives_what_it_shows(
    start_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    protected = [block for block in ALL if WITH_ACCESS in block.headings]
    (started,) = [block.text for block in protected if block.language == "sh"]
    assert started.strip() == "make run ARGS='--access required'"
    serve = start_serve(workers=1, access="required")
    # as where nothing is configured: the data folder is the same for the service and the command
    serve.environment["KVSTORE_DATA"] = str(serve.data)
    check_session([block for block in protected if block.language == "console"], serve, tmp_path)


def check_session(session: list[Block], serve: Serve, tmp_path: Path) -> None:
    """Type what is shown, and compare with what is shown to come of it."""
    for block in session:
        for step in steps(block):
            # a progress meter is for a person at a terminal
            command = step.command.replace("curl ", "curl --silent ", 1)
            real = run_in_shell(command, serve, tmp_path)
            assert looks_like(step.output, real), f"$ {step.command}\nshown:\n{step.output}\nreal:\n{real}"


def put(serve: Serve, key: str, value: str) -> None:
    answer = call(serve.url, "PUT", kv_path(key), value.encode(), {"Content-Type": "text/plain"})
    assert answer.status in (200, 201)


def test_the_page_in_a_browser_follows_and_resumes(serve: Serve, tmp_path: Path) -> None:
    (block,) = shown("js")
    put(serve, "color/sky", "blue")
    with open_browser(tmp_path / "profile") as browser:

        def text() -> str:
            return str(browser.run("document.body.textContent"))

        browser.open(f"{serve.url}/v1/status")
        browser.run(block.text)
        wait_until(lambda: "color/sky is blue." in text(), what="the page shows what was there")
        put(serve, "color/sea", "teal")
        wait_until(lambda: "color/sea is teal." in text(), what="the page shows a change")
        serve.restart()
        put(serve, "color/sun", "yellow")
        wait_until(lambda: "color/sun is yellow." in text(), what="the page resumes after a restart")
        for told in ("color/sky is blue", "color/sea is teal", "color/sun is yellow"):
            assert text().count(told) == 1, text()


@contextmanager
def program(block: Block, serve: Serve, folder: Path) -> Iterator[Callable[[], str]]:
    """Run a Python block; gives a function that tells what it has printed so far."""
    script, output = folder / "program.py", folder / "output"
    script.write_text(translated(block.text, serve))
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-u", script], stdout=file, stderr=subprocess.STDOUT)

    def printed() -> str:
        text = output.read_text()
        assert process.poll() is None, f"the program ended:\n{text}"
        return text

    try:
        yield printed
    finally:
        process.terminate()
        process.wait(20)


def test_the_plain_zeromq_subscriber_prints_changes(serve: Serve, tmp_path: Path) -> None:
    plain, _ = shown("python")
    with program(plain, serve, tmp_path) as printed:

        def told() -> bool:
            # a SUB socket is told nothing of what was before its subscription has arrived
            put(serve, "color/sea", "teal")
            return "put color/sea teal" in printed()

        wait_until(told, what="the subscriber prints a change")


def test_the_native_client_and_subscription_print_what_the_readme_says(serve: Serve, tmp_path: Path) -> None:
    _, native = shown("python")
    adapted = native.text.replace("Client()", f"Client({serve.requests!r})").replace(
        "Subscription(", f"Subscription(requests={serve.requests!r}, changes={serve.changes!r}, "
    )
    with program(native._replace(text=adapted), serve, tmp_path) as printed:
        wait_until(lambda: "put color/night" in printed(), what="the subscription prints the put")
        assert "black None" in printed()
        put(serve, "color/sea", "teal")
        wait_until(lambda: "put color/sea" in printed(), what="the subscription follows")


def test_the_routes_of_the_readme_are_those_of_the_service(serve: Serve) -> None:
    rows = [row[0].strip("`").partition("?")[0].split() for row in table_rows(README, "Routes")]
    named = {(method, path) for method, path in rows}
    described = call(serve.url, "GET", "/openapi.json").json["paths"]
    assert named <= {(method.upper(), path) for path, methods in described.items() for method in methods}
    assert {path for _, path in named} == set(described)
