"""The examples of the protocol's section on access, run with a file that ``kvstore key create`` wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.markdown import ROOT, blocks
from support.protected import Protected
from support.servers import clean_environment, run_kvstore, wait_until
from support.wire import put


def test_the_examples_of_a_plain_client_and_subscriber_run(protected: Protected, tmp_path: Path) -> None:
    environment = clean_environment(tmp_path, KVSTORE_TOKEN=protected.admin_token)
    command = ("key", "create", "plain-client", "--grant", "rw:app/", "--url", protected.url)
    made = run_kvstore(*command, "--output", str(tmp_path / "login.json"), env=environment)
    assert made.returncode == 0, made.stderr
    shown = [
        block.text
        for block in blocks((ROOT / "docs/protocol.md").read_text())
        if block.language == "python" and "9. Security" in block.headings
    ]
    assert len(shown) == 2
    program = "".join(shown).replace("tcp://127.0.0.1:5555", protected.requests)
    program = program.replace("tcp://127.0.0.1:5556", protected.changes)
    out = tmp_path / "out"
    with out.open("wb") as file:
        running = subprocess.Popen(
            [sys.executable, "-u", "-c", program], cwd=tmp_path, env=os.environ, stdout=file, stderr=file
        )
    try:

        def is_told() -> bool:
            protected.root.ask(put("app/x", b"hello"))
            assert running.poll() is None, out.read_text()
            return "\napp/x {" in out.read_text()

        wait_until(is_told, what="the subscriber shows a change", every=0.1)
    finally:
        running.kill()
        running.wait()
    assert '"plain-client"' in out.read_text().splitlines()[0]
    assert out.read_text().rstrip().endswith("b'hello'")
