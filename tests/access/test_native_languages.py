"""Clients in other languages, with libzmq builds of their own, come in through CURVE."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.identities import Identities, KeyPair, new_key
from support.programs import install_examples, require_program, skip_but_in_ci
from support.servers import Daemon, StartDaemon

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["node", "c"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a client."""
    folder = tmp_path_factory.mktemp("client")
    if request.param == "node":
        node = install_examples(folder)
        program = folder / "native_client.mjs"
        program.write_bytes((HERE / "native_client.mjs").read_bytes())
        return [node, str(program)]
    compiler = require_program("cc")
    program = folder / "native_client"
    built = subprocess.run(
        [compiler, "-Wall", "-Werror", "-o", program, HERE / "native_client.c", "-lzmq"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if "zmq.h" in built.stderr:
        skip_but_in_ci("zmq.h is not installed; 'make test' installs it, or: tools/needs libzmq3-dev")
    assert built.returncode == 0, built.stderr
    return [str(program)]


def said_by(client: list[str], daemon: Daemon, identities: Identities, key: KeyPair) -> list[str]:
    keys = identities.keys(key)
    command = [*client, daemon.requests, daemon.changes, *keys]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_client_in_another_language(client: list[str], start_daemon: StartDaemon, tmp_path: Path) -> None:
    identities = Identities(tmp_path / "data")
    key = identities.add("writer", "rw:app/")
    daemon = start_daemon(access="required", data=str(tmp_path / "data"))
    reply, change = said_by(client, daemon, identities, key)
    assert json.loads(reply)["results"][0]["version"] == 1
    assert change in ("app/node hi", "app/c hi")
    assert said_by(client, daemon, identities, new_key()) == ["refused 400"]
