"""The commands that ``subscribe --exec`` runs never outlive it, and where the position is kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvstore_cli.files.position_file import PositionFile
from kvstore_cli.subscribe.handler_process import GRACE_SECONDS, run
from support.programs import skip_but_in_ci
from support.servers import kvstore_command, wait_until

pytestmark = pytest.mark.slow

Kvstore = Any
Start = Callable[..., Any]

# A handler of several processes, one of which takes a moment to clean up; it says when it runs, and that
# it ended well.
SLOW = """
trap 'echo cleaned >> log' TERM
(trap 'sleep 0.3; echo child cleaned >> log; exit' TERM
echo "$KVSTORE_EVENT_REVISION" >> log; sleep 1000 & wait) &
wait; wait
"""
FIRST = ("subscribe", "--since", "0", "--count", "1")
STUBBORN = "trap '' TERM HUP INT; echo started >> log; while :; do sleep 1000 & wait; done"


def log_of(kvstore: Kvstore) -> list[str]:
    path = kvstore.folder / "log"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def processes_in(folder: Path) -> list[str]:
    """The processes that work in ``folder``: what they were called with."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.fixture
def own(kvstore: Kvstore, tmp_path: Path) -> Kvstore:
    """The command line in a folder of its own, so that its processes are known by it."""
    return type(kvstore)(tmp_path, kvstore.environment["KVSTORE_URL"])


def handling(start: Start, kvstore: Kvstore, key: str, handler: str, *arguments: str, said: str = "") -> Any:
    """A subscription whose handler is at work."""
    running = start(kvstore, "subscribe", key, "--exec", handler, *arguments)
    wait_until(lambda: "following the changes" in running.stderr, what="it follows")
    kvstore.out("put", key, "v")
    wait_until(lambda: log_of(kvstore), what="the handler is at work")
    return running


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGABRT]
)
def test_however_it_ends_its_handler_ends_with_it(own: Kvstore, start: Start, how: int) -> None:
    cleans_up = how not in (signal.SIGKILL, signal.SIGABRT)
    running = handling(start, own, f"ends/{how}", SLOW)
    running.process.send_signal(how)
    assert running.wait() == (128 + how if cleans_up else -how)
    if cleans_up:
        assert processes_in(own.folder) == []
    wait_until(lambda: not processes_in(own.folder), what="nothing is left")
    assert sorted(log_of(own)[1:]) == ["child cleaned", "cleaned"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_for_the_whole_process_group_does_not_separate_them(own: Kvstore, how: int) -> None:
    program = kvstore_command("subscribe", "group/k", "--exec", SLOW, "--since", "0")
    own.out("put", "group/k", "v")
    with subprocess.Popen(program, env=own.environment, cwd=own.folder, process_group=0) as process:
        wait_until(lambda: log_of(own), what="the handler is at work")
        os.killpg(process.pid, how)
    wait_until(lambda: not processes_in(own.folder), what="nothing is left")


@pytest.mark.parametrize(
    ("name", "handler"),
    [("deaf", STUBBORN), ("stopped", "echo on >> log; kill -STOP $$; echo never >> log")],
)
def test_a_handler_that_does_not_listen_is_killed(
    own: Kvstore, start: Start, name: str, handler: str
) -> None:
    running = handling(start, own, f"{name}/k", handler)
    running.process.send_signal(signal.SIGTERM)
    assert running.wait() == 143
    assert processes_in(own.folder) == []


def test_a_second_interrupt_does_not_wait_for_it(own: Kvstore, start: Start) -> None:
    handler = "trap 'echo asked >> log' TERM; echo on >> log; while :; do sleep 1000 & wait; done"
    running = handling(start, own, "twice/k", handler)
    running.process.send_signal(signal.SIGINT)
    wait_until(lambda: "asked" in log_of(own), what="the handler was asked to end")
    running.process.send_signal(signal.SIGINT)
    assert running.wait() == 130
    wait_until(lambda: not processes_in(own.folder), what="nothing is left")


def test_what_a_handler_left_behind_on_purpose_is_let_be(own: Kvstore, start: Start) -> None:
    own.out("put", "behind/k", "v")
    own.out(*FIRST, "behind/k", "--exec", "sleep 1000 >/dev/null 2>&1 & echo $! >> log")
    (pid,) = map(int, log_of(own))
    os.kill(pid, signal.SIGKILL)


def test_the_next_run_begins_with_the_event_only_when_its_handler_is_gone(own: Kvstore, start: Start) -> None:
    # mkdir is atomic: two at a time would be noticed
    handler = (
        "mkdir busy || { echo twice >> log; exit 1; }; trap 'sleep 0.5; rmdir busy; exit 1' TERM;"
        "echo $KVSTORE_EVENT_KEY >> log; [ -e quick ] || { sleep 1000 & wait; }; rmdir busy"
    )
    position = ("--cursor", "position")
    first = handling(start, own, "next/k", handler, *position)
    for _ in range(3):
        first.process.kill()
        # while the handler of the one before is still at its end
        first = start(own, "subscribe", "next/k", "--exec", handler, *position)
        seen = len(log_of(own))
        wait_until(lambda: len(log_of(own)) > seen, what="the event came again")  # noqa: B023
    (own.folder / "quick").touch()
    first.process.terminate()
    assert first.wait() == 143
    assert own.out("subscribe", "next/k", "--exec", handler, *position, "--count", "1") == b""
    assert set(log_of(own)) == {"next/k"}


def test_two_at_a_time_do_not_keep_one_position(own: Kvstore, start: Start) -> None:
    running = handling(start, own, "both/k", SLOW, "--cursor", "position")
    done = own("subscribe", "both/k", "--cursor", "position", "--count", "1")
    assert done.returncode == 2
    assert "another kvstore is using" in done.stderr.decode()
    running.process.terminate()
    assert running.wait() == 143


def test_run_gives_the_status_and_minds_nothing_else(tmp_path: Path) -> None:
    environment = dict(os.environb)
    assert run("exit 7", b"", environment) == 7
    assert run("kill -TERM $$", b"", environment) == -signal.SIGTERM
    big = b"x" * 3_000_000
    target = tmp_path / "value"
    assert run(f"cat > {target}", big, environment) == 0
    assert target.read_bytes() == big
    assert run("true", big, environment) == 0
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    run("true", b"", environment)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_minder_that_is_killed_takes_the_handler_with_it(own: Kvstore, start: Start) -> None:
    running = handling(start, own, "minder/k", "echo $PPID >> log; sleep 1000; true")
    os.kill(int(log_of(own)[0]), signal.SIGKILL)
    wait_until(lambda: "signal 9" in running.stderr, what="it is said")
    wait_until(lambda: len(processes_in(own.folder)) == 1, what="only the subscription is left")


def test_a_handler_whose_minder_is_killed_at_once_is_known(tmp_path: Path) -> None:
    script = f"cd {tmp_path}; kill -9 $PPID; exec sleep 1000"
    for _ in range(15):  # once in some hundred times the handler was quicker than its minder
        assert run(script, b"", dict(os.environb)) == -signal.SIGKILL
    wait_until(lambda: not processes_in(tmp_path), what="nothing is left")


def test_a_handler_gets_signals_as_a_shell_would_give_them(own: Kvstore) -> None:
    own.out("put", "signals/k", "v")
    shown = own.out(*FIRST, "signals/k", "--exec", "grep -E 'Sig(Blk|Ign)' /proc/self/status")
    # those up to 31: what is behind them belongs to the C library, and comes from whatever started us
    standard = 2**31 - 1
    assert [int(line.split()[1], 16) & standard for line in shown.splitlines()] == [0, 0]


def test_the_grace_is_less_than_what_docker_gives_us() -> None:
    assert GRACE_SECONDS < 10


# ── where the position is kept ───────────────────────────────────────────────────────────────────


def followed(kvstore: Kvstore, path: str) -> list[str]:
    """The values of two runs that share the position in ``path``."""
    key = f"kept/{path}"
    first = int(kvstore.out("put", key, "1"))
    for value in ("2", "3"):
        kvstore.out("put", key, value)
    command = ("subscribe", key, "--since", str(first), "--cursor", path, "--count", "1", "--json")
    return [kvstore.lines(*command)[0]["value"] for _ in range(2)]


def test_a_position_is_kept_where_no_file_can_take_the_place_of_another(own: Kvstore) -> None:
    (own.folder / "real").mkdir()
    (own.folder / "link").symlink_to("real/position")
    assert followed(own, "link") == ["2", "3"]
    assert (own.folder / "link").is_symlink()
    (own.folder / "real/empty").touch()  # as one makes it for a mount
    assert followed(own, "real/empty") == ["2", "3"]
    assert sorted(path.name for path in (own.folder / "real").iterdir()) == ["empty", "position"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_position_is_kept_in_a_file_that_is_mounted(own: Kvstore) -> None:
    (own.folder / "outside").touch()
    (own.folder / "mounted").touch()

    def with_mount(script: str) -> subprocess.CompletedProcess[bytes]:
        line = f"mount --bind outside mounted && {script}"
        unshared = ["unshare", "--mount", "sh", "-c", line, *kvstore_command()]
        return subprocess.run(unshared, env=own.environment, cwd=own.folder, capture_output=True, check=False)

    own.out("put", "mount/k", "1")
    own.out("put", "mount/k", "2")
    follow = '"$0" subscribe mount/k --since 0 --cursor mounted --count 1'
    done = with_mount(f"{follow} && {follow}")
    if b"unshare" in done.stderr or b"mount:" in done.stderr:
        skip_but_in_ci(f"nothing can be mounted here: {done.stderr.decode()}")
    assert [line.split(b"\t")[-1] for line in done.stdout.splitlines()] == [b"1", b"2"], done.stderr.decode()
    done = with_mount('"$0" export mounted --force')
    assert done.returncode == 2
    assert b"it is a mount point" in done.stderr


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("folder", "Is a directory"),
        ("/dev/null", "not a regular file"),
        ("/dev/stdout", "not a regular file"),
        ("fifo", "not a regular file"),
        ("no/such/folder/x", "there is no folder"),
        ("loop", "symbolic links"),
        ("/proc/self/mounts", ""),
    ],
)
def test_what_cannot_keep_a_position_is_told_before_the_first_event(
    own: Kvstore, path: str, said: str
) -> None:
    (own.folder / "folder").mkdir()
    (own.folder / "loop").symlink_to("loop")
    os.mkfifo(own.folder / "fifo")
    own.out("put", "before/k", "1")
    done = own(*FIRST, "before/k", "--cursor", path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "cannot write the cursor to" in done.stderr.decode()
    assert said in done.stderr.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_whose_the_folder_is_does_not_matter_for_a_file_that_can_be_written(own: Kvstore) -> None:
    for folder in own.folder.parents[:-2]:
        folder.chmod(folder.stat().st_mode | 0o011)
    own.folder.chmod(0o755)
    position, closed = own.folder / "position", own.folder / "closed"
    for path, mode in ((position, 0o666), (closed, 0o644)):
        path.touch()
        path.chmod(mode)
    own.out("put", "whose/k", "1")
    setpriv = [shutil.which("setpriv"), "--reuid=3141592", "--clear-groups"]

    def follow(path: Path) -> subprocess.CompletedProcess[bytes]:
        program = [*setpriv, *kvstore_command(*FIRST, "whose/k", "--cursor", str(path))]
        return subprocess.run(program, env=own.environment, cwd="/", capture_output=True, check=False)

    done = follow(position)
    assert (done.returncode, done.stdout[:3]) == (0, b"put"), done.stderr.decode()
    assert position.read_text().strip()
    done = follow(closed)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "Permission denied" in done.stderr.decode()


def test_a_file_that_is_kept_is_as_long_as_it_was_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    kept = PositionFile(str(path))
    assert kept.read() == ""
    kept.write("9-abc")
    size = path.stat().st_size
    kept.write("10-abcd")
    assert (kept.read(), path.stat().st_size) == ("10-abcd", size)
    kept.write("x" * 600)
    kept.write("y")
    assert kept.read() == "y"
    kept.close()
    again = PositionFile(str(path))
    assert again.read() == "y"
    again.discard()
    assert not path.exists()
    PositionFile(str(path)).close()
    assert not path.exists()


@pytest.mark.parametrize("is_written", [True, False])
def test_who_waited_for_a_file_that_was_removed_gets_the_one_that_others_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_written: bool
) -> None:
    path = tmp_path / "kept"
    first = PositionFile(str(path))
    if is_written:
        first.write("first")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(PositionFile, str(path))
        said: list[str] = []
        wait_until(lambda: said.append(capsys.readouterr().err) or "waiting" in "".join(said))
        if is_written:
            first.discard()
        else:
            first.close()
        second = waiting.result()
    second.write("second")
    assert path.read_text().strip() == "second"
    with path.open() as third, pytest.raises(BlockingIOError):
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second.close()


@pytest.mark.parametrize("end", [PositionFile.discard, PositionFile.close])
def test_only_the_own_file_is_removed(tmp_path: Path, end: Callable[[PositionFile], None]) -> None:
    path = tmp_path / "kept"
    kept = PositionFile(str(path))
    path.unlink()
    path.write_text("somebody's")
    end(kept)
    assert path.read_text() == "somebody's"
