"""A disk that fails: the errors it leads to, what goes on, and that nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore_client import Client
from kvstore_client.commands import put
from kvstore_core.errors import KvError
from support.disk import preloaded, run_script
from support.lengths import SHARE, Survived, times
from support.servers import Serve, StartDaemon, clean_environment, kvstore_command, wait_until
from support.session import call

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("calls for its file that fail")]

TRIED = max(0.03, SHARE)
"""Of the engine's calls, the share that is let fail."""


@pytest.mark.torture
@pytest.mark.timeout(120 + 1800 * TRIED)
def test_whichever_call_fails_the_error_says_what_to_do_and_nothing_is_lost(
    root: Path, survived: Survived
) -> None:
    """Each call of a first start, of a later one and of writes, once or from then on, with each error that a
    disk gives: none of them is reported as damage, reads go on, and after a restart all is there."""
    environment = {**os.environ, **preloaded(root)}
    tried = int(run_script("fail_calls.py", root, random.randrange(2**32), TRIED, environment=environment))
    assert tried > 10
    survived(failed_calls=tried)


@pytest.mark.torture
@pytest.mark.timeout(120 + 3000 * SHARE)
def test_whichever_call_of_a_command_fails_its_files_are_whole_and_a_second_try_works(
    start_serve: Callable[..., Serve], tmp_path: Path, survived: Survived
) -> None:
    """Each call of backup, restore, compact, check, export, import and subscribe --cursor to their files."""
    (disk := tmp_path / "disk").mkdir()
    url = start_serve(workers=1).url
    for number in range(10):
        assert call(url, "PUT", f"/v1/kv/key{number}", b"value").status == 201
    chosen = tmp_path, url, random.randrange(2**32), times(2, full=9), times(3, full=400)
    environment = clean_environment(tmp_path, **preloaded(disk))
    tried = int(run_script("fail_commands.py", *chosen, environment=environment))
    survived(failed_calls_of_commands=tried)


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_after_a_failed_write_of_the_journal_reads_go_on_and_a_restart_cures_it(
    start_daemon: StartDaemon, root: Path, call: str
) -> None:
    broken = preloaded(root, fail=f"{call}:5:10:1000000:journal")
    daemon = start_daemon(data=root / "data", environment=broken)
    written, failure = [], None
    with Client(daemon.requests) as client:
        while failure is None:
            key = f"key{len(written)}"
            try:
                client.batch([put(f"due{number}", b"", ttl=2) for number in range(3)])
                client.put(key, b"value")
                written.append(key)
            except KvError as error:
                failure = error
        assert failure.code == "internal"
        assert "restart" in failure.message
        assert len(written) > 0
        for key in written:
            assert client.get(key).value == b"value"
        assert client.status()["writes_refused"]["code"] == "internal"
        # the expiry of these fails again and again, once a second
        wait_until(lambda: [record.key for record in client.list()] == written)
        wait_until(lambda: "could not be removed" in daemon.stderr)
        tries = client.status()["counters"]["groups_committed"]
        wait_until(lambda: client.status()["counters"]["groups_committed"] >= tries + 2)
    (line,) = (line for line in daemon.stderr.splitlines() if "could not be removed" in line)
    assert failure.message in line
    daemon.stop()
    assert "Traceback" not in daemon.stderr
    assert "damaged" not in daemon.stderr
    daemon.environment.pop("DISK_FAIL")
    daemon.start()
    with Client(daemon.requests) as client:
        client.put("again", b"value")
        for key in written:
            assert client.get(key).value == b"value"


def test_a_disk_that_does_not_say_how_much_room_it_has_stops_nothing(
    start_daemon: StartDaemon, root: Path
) -> None:
    environment = preloaded(root, fail="statvfs:5:1:1000000")
    daemon = start_daemon(data=root / "data", environment=environment)
    with Client(daemon.requests) as client:
        client.put("key", b"value")
        assert client.status()["writes_refused"] is None
    assert "Traceback" not in daemon.stderr


def run(*arguments: object, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        kvstore_command(*map(str, arguments)),
        env=clean_environment(home, KVSTORE_LOG_FORMAT="text", **environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


@pytest.mark.parametrize(
    ("fail", "advice"),
    [
        ("open:24:2:1000000", "raise the limit of open files"),
        ("open:13:2:1000000", "belongs to user|may not|give it to user"),
        ("pwrite:28:1:1000000", "make room on the disk"),
        ("fdatasync:5:1:1000000", "the disk has failed"),
        ("mkdir:30:1:1", "read-only|choose another --data"),
    ],
)
def test_a_daemon_that_cannot_start_says_why_in_one_line(
    root: Path, tmp_path: Path, fail: str, advice: str
) -> None:
    done = run("daemon", "--data", root / "data", home=tmp_path, **preloaded(root, fail=fail))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert any(each in line for each in advice.split("|"))
    assert "damage" not in line
    # nothing is left that the next start, or a check, would stumble over
    checked = run("check", "--data", root / "data", home=tmp_path)
    assert "there is no store" in checked.stderr


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (["daemon"], "data", "/nowhere\\u0000/data"),
        (["check"], "data", "/nowhere\\u0000/data"),
        (["backup", "-"], "data", "/nowhere\\u0000/data"),
        (["daemon"], "requests", "ipc:///nowhere\\u0000"),
    ],
)
def test_a_nul_in_the_configuration_is_named(
    tmp_path: Path, command: list[str], option: str, value: str
) -> None:
    file = tmp_path / "kvstore.toml"
    file.write_text(f'{option} = "{value}"\n')
    done = run(*command, "--config", file, home=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{file}: {option}" in line
    assert "NUL" in line
