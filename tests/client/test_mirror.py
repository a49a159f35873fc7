"""A mirror has what the store has, whatever happens to either, and knows whether it does."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvstore_client import (
    AsyncMirror,
    Client,
    Damaged,
    KvError,
    Mirror,
    Record,
    TimedOut,
    Unavailable,
    commands,
)
from kvstore_client.mirroring import mirror_file, mirrored_records
from kvstore_core.filters import Filter
from support.patience import PATIENCE_SECONDS
from support.proxy import CuttingProxy
from support.servers import Daemon, StartDaemon, run_kvstore, wait_until


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.requests, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def shared_client(shared_daemon: Daemon) -> Iterator[Client]:
    with Client(shared_daemon.requests, timeout=PATIENCE_SECONDS) as client:
        yield client


def mirror_of(daemon: Daemon, **options: Any) -> Mirror:
    return Mirror(daemon.requests, daemon.changes, **{"timeout": PATIENCE_SECONDS, **options})


def stored(client: Client, prefix: str = "") -> dict[str, Record]:
    return {record.key: record for record in client.list(prefix=prefix)}


class Changes:
    """What ``on_change`` was called with."""

    def __init__(self) -> None:
        self.calls: list[Mapping[str, Record | None]] = []

    def __call__(self, changed: Mapping[str, Record | None]) -> None:
        self.calls.append(changed)

    @property
    def keys(self) -> list[list[str]]:
        return [sorted(changed) for changed in self.calls]


def test_it_is_a_mapping_of_the_present_records(daemon: Daemon, client: Client) -> None:
    client.batch([commands.put(key, key) for key in ("app/b", "app/é", "app/a", "other")])
    changes = Changes()
    with mirror_of(daemon, prefixes=["app/"], on_change=changes) as mirror:
        assert dict(mirror) == stored(client, "app/")
        assert list(mirror) == ["app/a", "app/b", "app/é"]
        assert (len(mirror), "app/a" in mirror, "other" in mirror) == (3, True, False)
        assert mirror["app/a"] == client.get("app/a")
        assert mirror.get("app/none") is None
        with pytest.raises(KeyError):
            _ = mirror["app/none"]
        assert mirror.is_current
        assert mirror.cursor is not None
        assert changes.keys == [["app/a", "app/b", "app/é"]]
        client.incr("app/n", 5)
        client.touch("app/a", 100)
        done = client.batch(
            [commands.delete("app/b"), commands.put("app/c", "c"), commands.put("x", "")], atomic=True
        )
        mirror.wait(done[0].revision)  # type: ignore[union-attr]
        assert dict(mirror) == stored(client, "app/")
        assert changes.keys[1:] == [["app/n"], ["app/a"], ["app/b", "app/c"]]
        assert changes.calls[-1]["app/b"] is None
        assert changes.calls[-1]["app/c"] == mirror["app/c"]
        mirror.verify()
    assert dict(mirror) == stored(client, "app/"), "what it had is gone with the end of it"


def test_a_write_is_waited_for_and_so_is_that_of_a_key_that_is_not_mirrored(
    daemon: Daemon, client: Client
) -> None:
    with mirror_of(daemon, prefixes=["app/"]) as mirror:
        for number in range(20):
            mirror.wait(client.put(f"app/{number % 3}", str(number)).revision)
            assert mirror[f"app/{number % 3}"].text == str(number)
            revision = client.put("other", "x").revision
            mirror.wait(revision)
            assert mirror.revision >= revision
        with pytest.raises(TimedOut, match=f"is at revision {revision}, and not at {revision + 1}") as late:
            mirror.wait(revision + 1, timeout=0.05)
        assert late.value.details["revision"] == revision


def test_it_reads_several_prefixes_and_none_twice(shared_daemon: Daemon, shared_client: Client) -> None:
    shared_client.batch([commands.put(key, "v") for key in ("a/1", "a/b/2", "c/3", "d/4")])
    with mirror_of(shared_daemon, prefixes=["a/", "a/b/", "c/"]) as mirror:
        assert list(mirror) == ["a/1", "a/b/2", "c/3"]
        mirror.verify()


def test_what_expires_goes(shared_daemon: Daemon, shared_client: Client) -> None:
    shared_client.put("app/short", "v", ttl=0.3)
    with mirror_of(shared_daemon) as mirror:
        wait_until(lambda: "app/short" not in mirror, timeout=PATIENCE_SECONDS)
        mirror.verify()


def test_a_view_is_of_one_revision(shared_daemon: Daemon, shared_client: Client) -> None:
    keys = [f"k/{number}" for number in range(20)]
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            shared_client.batch([commands.put(key, str(number)) for key in keys], atomic=True)

    with mirror_of(shared_daemon, prefixes=["k/"]) as mirror:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            seen = set()
            while len(seen) < 50:
                view = mirror.view()
                assert len({record.revision for record in view.records.values()}) <= 1
                seen.add(view.cursor.revision)
                list(mirror)  # which must not mind that it changes
        finally:
            stop.set()
            writer.join()
        mirror.verify()


def test_it_is_begun_once_and_used_inside(shared_daemon: Daemon) -> None:
    mirror = mirror_of(shared_daemon)
    with pytest.raises(Unavailable):
        mirror.view()
    for use in (lambda: mirror.wait(1), mirror.verify):
        with pytest.raises(RuntimeError, match="inside its 'with' block"):
            use()
    with mirror:
        pass
    assert not mirror.is_current or mirror.age < 3
    with pytest.raises(RuntimeError, match="begun once"), mirror:
        pass


def test_a_callback_that_fails_is_in_the_log_and_changes_nothing(
    shared_daemon: Daemon, shared_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    with mirror_of(shared_daemon, on_change=fail) as mirror:
        mirror.wait(shared_client.put("a", "1").revision)
        mirror.wait(shared_client.put("a", "2").revision)
        assert mirror["a"].text == "2"
    assert "on_change of a mirror failed" in caplog.text


def test_the_asyncio_form_does_the_same(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    changes = Changes()
    file = tmp_path / "mirror"

    async def main() -> None:
        client.put("app/a", "1")
        options: dict[str, Any] = {"prefixes": ["app/"], "file": file, "timeout": PATIENCE_SECONDS}
        async with AsyncMirror(daemon.requests, daemon.changes, on_change=changes, **options) as mirror:
            for number in range(20):
                await mirror.wait(client.put("app/a", str(number)).revision)
                assert mirror["app/a"].text == str(number)
                await mirror.wait(client.put("other", "x").revision)
            with pytest.raises(TimedOut):
                await mirror.wait(mirror.revision + 1, timeout=0.05)
            await mirror.verify()
            mirror._state.records["app/a"] = mirror["app/a"]._replace(value=b"planted")
            with pytest.raises(Damaged):
                await mirror.verify(timeout=1)
        async with AsyncMirror(daemon.requests, daemon.changes, **options) as again:
            assert again.is_current

    asyncio.run(main())
    assert changes.keys == [["app/a"]] * 21


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────


def test_it_says_that_the_store_is_away_and_goes_on_when_it_is_back(daemon: Daemon, client: Client) -> None:
    client.put("a", "1")
    with mirror_of(daemon) as mirror:
        daemon.signal(signal.SIGSTOP)
        wait_until(lambda: not mirror.is_current, timeout=PATIENCE_SECONDS)
        assert mirror["a"].text == "1"
        assert mirror.age > 1
        daemon.signal(signal.SIGCONT)
        wait_until(lambda: mirror.is_current, timeout=PATIENCE_SECONDS)
        daemon.kill()
        wait_until(lambda: not mirror.is_current, timeout=PATIENCE_SECONDS)
        daemon.start()
        mirror.wait(client.put("a", "2").revision)
        assert mirror["a"].text == "2"
        wait_until(lambda: mirror.is_current, timeout=PATIENCE_SECONDS)
        mirror.verify()


def test_without_a_store_the_block_does_not_begin() -> None:
    mirror = Mirror("tcp://127.0.0.1:9", "tcp://127.0.0.1:9", timeout=0.2)
    with pytest.raises(TimedOut, match="heard nothing from the store"), mirror:
        pass
    assert threading.active_count() == 1 or "kvstore-mirror" not in {t.name for t in threading.enumerate()}


def test_a_program_ends_though_it_does_not_close_its_mirror(shared_daemon: Daemon) -> None:
    program = (
        "from kvstore_client import Mirror\n"
        f"mirror = Mirror({shared_daemon.requests!r}, {shared_daemon.changes!r}, timeout=50)\n"
        "mirror.__enter__()\nprint(mirror.is_current)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_forked_process_has_what_there_was_and_follows_nothing(
    shared_daemon: Daemon, shared_client: Client
) -> None:
    shared_client.put("a", "1")
    with mirror_of(shared_daemon) as mirror:
        child = os.fork()
        if not child:
            status = 1
            try:
                mirror.close()
                with pytest.raises(RuntimeError, match="forked"):
                    mirror.wait(1)
                status = 0 if mirror["a"].text == "1" and not mirror.is_current else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        mirror.wait(shared_client.put("a", "2").revision)


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def test_with_a_file_it_goes_on_where_it_was(
    daemon: Daemon, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mirror"
    client.batch([commands.put(f"app/{number}", b"\xff" * number, ttl=1000) for number in range(5)])
    client.put("app/é", "v", message="why")
    with mirror_of(daemon, prefixes=["app/"], file=file):
        assert not file.exists()
    assert file.stat().st_mode & 0o777 == 0o600
    client.delete("app/1")
    client.put("app/new", "v")
    changes = Changes()
    with mirror_of(daemon, prefixes=["app/"], file=file, on_change=changes) as mirror:
        assert dict(mirror) == stored(client, "app/")
        assert changes.keys == [["app/1"], ["app/new"]], "it did not go on from its cursor"
        mirror.verify()
    assert not caplog.records


def test_it_is_written_some_seconds_after_a_change_while_it_runs(
    shared_daemon: Daemon, shared_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_file, "SAVE_SECONDS", 0.05)
    file = tmp_path / "mirror"
    with mirror_of(shared_daemon, file=file) as mirror:
        for number in range(3):
            before = file.read_bytes() if file.exists() else b""
            mirror.wait(shared_client.put("a", str(number)).revision)
            wait_until(lambda: file.exists() and file.read_bytes() != before, timeout=PATIENCE_SECONDS)  # noqa: B023
        assert is_usable(file)


def test_while_the_store_is_away_it_has_what_the_file_has(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "mirror"
    client.put("a", "1")
    with mirror_of(daemon, file=file):
        pass
    daemon.stop()
    with mirror_of(daemon, file=file, timeout=0.3) as mirror:
        assert mirror["a"].text == "1"
        assert not mirror.is_current
        daemon.start()
        mirror.wait(client.put("a", "2").revision, timeout=PATIENCE_SECONDS)
        assert mirror.is_current


def is_usable(file: Path) -> bool:
    return mirror_file.MirrorFile(file, Filter()).load() is not None


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: data[:0], "no file of a mirror"),
    "of something else": (lambda data: b"#!/bin/sh\n" + data, "no file of a mirror"),
    "of a later version": (lambda data: data.replace(b"mirror 1\n", b"mirror 2\n"), "another version"),
    "cut off": (lambda data: data[:-3], "damaged"),
    "longer": (lambda data: data + b"x", "damaged"),
    "altered": (lambda data: flipped(data, len(data) - 1), "damaged"),
    "altered in its checksum": (lambda data: flipped(data, 20), "damaged"),
}


@pytest.mark.parametrize(("spoil", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_of_no_use_is_said_and_not_used(
    shared_daemon: Daemon, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Any, said: str
) -> None:
    file = tmp_path / "mirror"
    with Client(shared_daemon.requests) as client:
        client.put("a", "1")
        with mirror_of(shared_daemon, file=file):
            pass
        file.write_bytes(spoil(file.read_bytes()))
        with mirror_of(shared_daemon, file=file) as mirror:
            assert dict(mirror) == stored(client)
            mirror.verify()
    assert said in caplog.text
    assert is_usable(file), "it was not written again"


def test_a_file_of_other_prefixes_or_of_another_store_is_not_used(
    daemon: Daemon,
    client: Client,
    start_daemon: StartDaemon,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "mirror"
    client.batch([commands.put("a/1", "v"), commands.put("b/1", "v")])
    with mirror_of(daemon, prefixes=["a/"], file=file):
        pass
    with mirror_of(daemon, prefixes=["b/"], file=file) as mirror:
        assert list(mirror) == ["b/1"]
    assert "it is that of a mirror of ['a/']" in caplog.text
    other = start_daemon()
    with Client(other.requests) as store:
        store.put("b/2", "v")
    with mirror_of(other, prefixes=["b/"], file=file) as mirror:
        wait_until(lambda: list(mirror) == ["b/2"], timeout=PATIENCE_SECONDS)
        mirror.verify()
    assert "reads all again: its position in the log is gone (epoch)" in caplog.text


def test_a_file_that_is_too_old_leads_to_a_snapshot(
    start_daemon: StartDaemon, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = start_daemon(retain_events=5)
    file = tmp_path / "mirror"
    with Client(daemon.requests) as client:
        client.put("gone", "v")
        with mirror_of(daemon, file=file):
            pass
        client.delete("gone")
        for number in range(300):
            client.put(f"k{number % 3}", str(number))
        wait_until(lambda: client.status()["floor"] > 1, timeout=PATIENCE_SECONDS)
        changes = Changes()
        with mirror_of(daemon, file=file, on_change=changes) as mirror:
            assert dict(mirror) == stored(client)
            assert changes.keys == [["gone", "k0", "k1", "k2"]], (
                "a snapshot is told as what it made different"
            )
            mirror.verify()
    assert "its position in the log is gone (expired)" in caplog.text


def test_a_file_that_cannot_be_written_is_said_once(
    shared_daemon: Daemon,
    shared_client: Client,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirror_file, "SAVE_SECONDS", 0.01)
    file = tmp_path / "missing" / "mirror"
    with mirror_of(shared_daemon, file=file) as mirror:
        mirror.wait(shared_client.put("a", "1").revision)
        wait_until(lambda: "cannot be written" in caplog.text, timeout=PATIENCE_SECONDS)
        mirror.wait(shared_client.put("a", "2").revision)
        file.parent.mkdir()
        mirror.wait(shared_client.put("a", "3").revision)
        wait_until(file.exists, timeout=PATIENCE_SECONDS)
    assert caplog.text.count("cannot be written") == 1


# ── proving that it is equal ─────────────────────────────────────────────────────────────────────


def lose(state: Any) -> None:
    del state.records["app/1"]


def invent(state: Any) -> None:
    state.records["app/9"] = state.records["app/1"]._replace(key="app/9")


def alter(state: Any) -> None:
    state.records["app/1"] = state.records["app/1"]._replace(value=b"other")


def age(state: Any) -> None:
    state.records["app/1"] = state.records["app/1"]._replace(revision=1)


FAULTS = [lose, invent, alter, age]


def plant(mirror: Mirror, fault: Callable[[Any], None], *, is_noticed: bool) -> None:
    with mirror._state.lock:
        fault(mirror._state)
        if not is_noticed:  # as if its own program had done so
            mirror._state._sum = sum(map(mirrored_records.number_of, mirror._state.records.values()))


def is_found_unequal(mirror: Mirror, loads: int) -> bool:
    """Whether it is found not to be equal; or a mirror of all has found so itself, at a heartbeat, and has
    loaded anew. A busy machine may need longer than this, and is asked again."""
    try:
        mirror.verify(timeout=0.2)
    except Damaged as damage:
        return "not equal to the store at revision" in damage.message
    except (TimedOut, Unavailable):
        return False
    return mirror._state.loads > loads


@pytest.mark.parametrize("prefixes", [[], ["app/", "b/"]], ids=["of all", "of prefixes"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("is_noticed", [True, False], ids=["in memory", "in what it took in"])
def test_a_fault_is_found_by_verify(
    shared_daemon: Daemon, fault: Callable[[Any], None], prefixes: list[str], is_noticed: bool
) -> None:
    with Client(shared_daemon.requests) as client:
        client.batch([commands.put(f"app/{number}", "v") for number in range(3)])
        with mirror_of(shared_daemon, prefixes=prefixes) as mirror:
            mirror.verify()
            loads = mirror._state.loads
            plant(mirror, fault, is_noticed=is_noticed)
            wait_until(lambda: is_found_unequal(mirror, loads))


def test_what_was_found_is_said_though_the_service_ends_before_the_time_is_over(
    daemon: Daemon, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put("app/1", "v")
    with mirror_of(daemon, prefixes=["app/"]) as mirror:
        plant(mirror, alter, is_noticed=False)
        compare = mirror._compare

        def compare_and_end(*arguments: Any) -> int | KvError:
            found = compare(*arguments)
            daemon.kill()
            return found

        monkeypatch.setattr(mirror, "_compare", compare_and_end)
        with pytest.raises(Damaged):
            mirror.verify(timeout=2)


def test_a_mirror_of_all_finds_a_fault_by_itself_and_reads_all_again(
    daemon: Daemon, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.put("app/1", "v")
    with mirror_of(daemon) as mirror:
        wait_until(lambda: mirror.proven is not None, timeout=PATIENCE_SECONDS)
        with mirror._state.lock:
            del mirror._state.records["app/1"]
            mirror._state._sum = 0
        wait_until(lambda: "app/1" in mirror and mirror.is_current, timeout=PATIENCE_SECONDS)
        mirror.verify()
    assert "a mirror is not equal to the store" in caplog.text


def test_what_has_expired_before_it_began_is_no_fault(daemon: Daemon, client: Client) -> None:
    """The store's digest has such records until their events; a snapshot has not."""
    client.batch([commands.put(f"k/{number}", "v", ttl=0.2) for number in range(500)])
    wait_until(lambda: client.get("k/0", None) is None, timeout=PATIENCE_SECONDS)
    for prefixes in ([], ["k/"]):
        with mirror_of(daemon, prefixes=prefixes) as mirror:
            mirror.verify()


def test_it_is_proven_in_parts_while_others_write(daemon: Daemon, client: Client) -> None:
    for begin in range(0, 5000, 1000):
        client.batch([commands.put(f"k/{begin + number:05}", "v") for number in range(1000)])
    stop = threading.Event()

    def write() -> None:
        chooser = random.Random(7)
        while not stop.is_set():
            client.put(f"k/{chooser.randrange(5000):05}", "w")

    with mirror_of(daemon, prefixes=["k/"]) as mirror:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(3):
                before = client.status()["revision"]
                assert mirror.verify().revision >= before
        finally:
            stop.set()
            writer.join()


# ── all of it together ───────────────────────────────────────────────────────────────────────────


@contextmanager
def disturbed(
    daemon: Daemon, proxies: list[CuttingProxy], chooser: random.Random
) -> Iterator[Callable[[], None]]:
    """A function that does something to the daemon, or to the connections."""

    def restart() -> None:
        daemon.kill()
        daemon.start()

    def stall() -> None:
        daemon.signal(signal.SIGSTOP)
        daemon.signal(signal.SIGCONT)

    def cut() -> None:
        chooser.choice(proxies).cut()

    def swallow() -> None:
        chooser.choice(proxies).swallow()

    yield lambda: chooser.choice([restart, stall, cut, cut, swallow])()


@pytest.mark.parametrize("seed", range(2))
def test_it_equals_a_model_whatever_happens(
    daemon: Daemon, client: Client, tmp_path: Path, seed: int
) -> None:
    chooser = random.Random(seed)
    keys = [f"{prefix}{number}" for prefix in ("a/", "b/", "c") for number in range(6)]
    model: dict[str, str] = {}

    def write() -> int:
        some = chooser.sample(keys, chooser.choice([1, 1, 3]))
        batch: list[commands.Command[Any]] = []
        for key in some:
            if key in model and chooser.random() < 0.3:
                del model[key]
                batch.append(commands.delete(key))
            else:
                model[key] = str(chooser.random())
                batch.append(commands.put(key, model[key]))
        return int(client.batch(batch, atomic=True)[-1].revision)  # type: ignore[union-attr]

    with ExitStack() as stack:
        proxies = [stack.enter_context(CuttingProxy(end)) for end in (daemon.requests, daemon.changes)]
        open_mirror = functools.partial(
            Mirror, proxies[0].endpoint, proxies[1].endpoint, timeout=PATIENCE_SECONDS, file=tmp_path / "file"
        )
        disturb = stack.enter_context(disturbed(daemon, proxies, chooser))
        everything = stack.enter_context(mirror_of(daemon))
        some: AbstractContextManager[Mirror] = open_mirror(prefixes=["a/", "c"])
        mirror = some.__enter__()
        try:
            for _ in range(12):
                for _ in range(chooser.randrange(1, 6)):
                    revision = write()
                disturb()
                if chooser.random() < 0.3:
                    mirror.close()
                    revision = write()
                    mirror = open_mirror(prefixes=["a/", "c"]).__enter__()
                for each in (mirror, everything):
                    each.wait(revision)
                wanted = {key: value for key, value in model.items() if not key.startswith("b/")}
                assert {key: record.text for key, record in mirror.items()} == wanted, f"seed {seed}"
                assert {key: record.text for key, record in everything.items()} == model, f"seed {seed}"
            everything.verify()
            mirror.verify()
        finally:
            mirror.close()


@pytest.mark.lmdb_only("a backup is of a store on this machine")
def test_a_restore_is_noticed_and_the_mirror_becomes_what_was_restored(
    daemon: Daemon, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client.put("kept", "v")
    with mirror_of(daemon) as mirror, mirror_of(daemon, prefixes=["k", "l"]) as some:
        daemon.stop()
        env = daemon.environment
        backup = tmp_path / "backup"
        done = run_kvstore("backup", str(backup), "--data", str(daemon.data), env=env)
        assert done.returncode == 0, done.stderr
        daemon.start()
        for each in (mirror, some):
            each.wait(client.put("lost", "v").revision)
            assert "lost" in each
        daemon.stop()
        done = run_kvstore("restore", str(backup), "--data", str(daemon.data), "--force", env=env)
        assert done.returncode == 0, done.stderr
        daemon.start()
        for each in (mirror, some):
            wait_until(lambda: list(each) == ["kept"], timeout=PATIENCE_SECONDS)  # noqa: B023
            each.verify()
