"""What the servers' logs have in common."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys

import pytest

from kvstore_core.process.logging import LogLevel, RateLimitedLog, request_extra
from support.servers import wait_until


def test_of_many_lines_one_in_a_while_is_logged_and_counts_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limited = RateLimitedLog(logging.getLogger("kvstore.test"), 0.2)
    limited.error("%(what)s", {"what": "100%"}, extra={"what": "it"})
    left_out = 0
    while len(caplog.records) == 1:
        limited.warning("%s is full", "100%")
        left_out += 1
    first, second = caplog.records
    assert (first.getMessage(), first.levelno, vars(first)["what"]) == ("100%", logging.ERROR, "it")
    assert left_out > 1
    assert second.getMessage() == f"100% is full ({left_out - 1} more since the last such line)"
    assert second.levelno == logging.WARNING
    wait_until(lambda: limited.warning("again") or len(caplog.records) > 2)  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("request_id", "extra"),
    [
        (None, None),
        ("a", {"request_id": "a"}),
        ([None, None], None),
        (["a", None, "a"], {"request_id": "a"}),
        (["b", None, "a"], {"request_id": ["b", "a"]}),
    ],
)
def test_a_line_names_each_request_once(request_id: str | list[str | None] | None, extra: object) -> None:
    assert request_extra(request_id) == extra


@pytest.mark.parametrize("configured", ["debug", "info", "warning", "error"])
def test_the_level_goes_down_step_by_step_and_back_at_once(
    configured: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = root.level

    def changed(number: signal.Signals) -> str:
        caplog.clear()
        level.change(number)
        said, _, name = caplog.messages[0].rpartition(" ")
        assert said == "kvstore test: the log level is now"
        assert root.level == getattr(logging, name.upper())
        return name

    try:
        level = LogLevel("test", configured)
        assert changed(signal.SIGUSR2) == configured
        steps = [changed(signal.SIGUSR1) for _ in range(4)]
        order = ["error", "warning", "info", "debug"]
        expected = order[order.index(configured) + 1 :] or ["debug"]
        assert steps == (expected + ["debug"] * 4)[:4]
        assert changed(signal.SIGUSR2) == configured
    finally:
        root.setLevel(before)


PROGRAM = """
import logging, os, signal
from kvstore_core.process.logging import LogLevel

level = LogLevel("test", "error")
go, wake = os.pipe()
child = os.fork()
if child == 0:
    os.read(go, 1)
    level.follow()
    os._exit(logging.getLogger().level)
level.change(signal.SIGUSR2)
for _ in range(3):
    level.change(signal.SIGUSR1)
os.write(wake, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_follows_however_many_signals_it_missed() -> None:
    # in a process without threads, which alone may fork
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) == logging.DEBUG
