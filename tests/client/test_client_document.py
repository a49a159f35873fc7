"""``docs/client.md``: its examples run, in their order, and print what they show."""

from __future__ import annotations

from typing import Any

import pytest

from support.markdown import ROOT, blocks
from support.servers import Daemon

PAGE = (ROOT / "docs" / "client.md").read_text()
BLOCKS = [block for block in blocks(PAGE) if block.language in ("python", "text")]


def test_the_examples_print_what_they_show(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setenv("KVSTORE_REQUESTS", daemon.requests)
    monkeypatch.setenv("KVSTORE_CHANGES", daemon.changes)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert BLOCKS
    try:
        for example, shown in zip(BLOCKS[::2], BLOCKS[1::2], strict=True):
            assert (example.language, shown.language) == ("python", "text")
            exec(compile(example.text, example.headings[-1], "exec"), names)  # noqa: S102
            assert capsys.readouterr().out == shown.text, example.headings
    finally:
        names["store"].close()
