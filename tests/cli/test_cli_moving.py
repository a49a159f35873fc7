"""``kvstore export`` and ``kvstore import``: what goes out comes in again, whatever happens in between."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import random
import signal
import ssl
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvstore_cli.transfer.ndjson_format import ExportWriter, Reader, line_of
from support.load import HttpWriter, Ledger
from support.proxy import CuttingProxy
from support.servers import Daemon, Facade, Service, is_stopped, kvstore_command, wait_until
from support.terminal import Terminal

pytestmark = pytest.mark.slow

Kvstore = Any
Start = Callable[..., Any]
Record = dict[str, Any]

NDJSON = {"Accept": "application/x-ndjson"}
KEPT = ("value", "value_b64", "content_type")
MOST_BYTES = 1024 * 1024
# Without the authorities of the machine, whom nobody asks here: they take 50 ms to load, for each request.
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture(scope="module")
def other(_shared_starter: Any) -> str:
    """The address of a second service, with a store of its own."""
    daemon = _shared_starter.start(Daemon, {}, None)
    return str(_shared_starter.start_facade(daemon).url)


def records(url: str, prefix: str = "") -> dict[str, Record]:
    """What the service holds, by key."""
    answer = httpx.get(f"{url}/v1/kv", params={"prefix": prefix}, headers=NDJSON, timeout=60, verify=PLAIN)
    return {record["key"]: record for record in map(json.loads, answer.content.splitlines())}


def kept(found: dict[str, Record]) -> dict[str, Record]:
    """What an import keeps of records, the expiry apart; of large values the checksum."""
    return {
        key: {name: shortened(record[name]) for name in KEPT if name in record}
        for key, record in found.items()
    }


def shortened(text: str) -> str:
    return text if len(text) < 1000 else hashlib.sha256(text.encode()).hexdigest()


def put_all(url: str, ops: list[dict[str, Any]]) -> None:
    """Put what ``ops`` describe, in batches."""
    for begin in range(0, len(ops), 1000):
        body = {"ops": [{"op": "put", **op} for op in ops[begin : begin + 1000]]}
        answer = httpx.post(f"{url}/v1/batch", json=body, timeout=60, verify=PLAIN).raise_for_status()
        assert all("error" not in result for result in answer.json()["results"])


def empty(url: str) -> None:
    """Delete everything."""
    ops = [{"op": "delete", "key": key} for key in records(url)]
    for begin in range(0, len(ops), 1000):
        body = {"ops": ops[begin : begin + 1000]}
        httpx.post(f"{url}/v1/batch", json=body, timeout=60, verify=PLAIN).raise_for_status()


def write_lines(path: Path, ops: list[dict[str, Any]]) -> None:
    """Make a file of what ``ops`` put, for an import."""
    path.write_text("".join(json.dumps(op) + "\n" for op in ops))


def millis(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() * 1000


def json_lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


# ── there and back ───────────────────────────────────────────────────────────────────────────────

keys = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=120)
media_types = st.sampled_from(
    ["text/plain; charset=utf-8", "application/json", "application/x-www-form-urlencoded", "x" * 255]
)
values = st.one_of(
    st.text(max_size=50).map(lambda text: {"value": text}),
    st.binary(max_size=50).map(lambda data: {"value_b64": b64encode(data).decode()}),
)
LARGEST = {
    "k" * 511: {"value": "\x01" * MOST_BYTES},
    "\n": {"value_b64": b64encode(b"\xff" * MOST_BYTES).decode(), "ttl": 3600},
    "ü" * 255: {"value": "", "content_type": "x" * 255},
    '"\\\x7f\u2028': {"value": "€" * (MOST_BYTES // 3)},
}


@settings(max_examples=12)
@given(
    store=st.dictionaries(
        keys,
        st.builds(
            lambda value, more: {**value, **more},
            values,
            st.fixed_dictionaries({}, optional={"content_type": media_types, "ttl": st.integers(60, 10**6)}),
        ),
        max_size=40,
    ),
    name=st.sampled_from(["e.ndjson", "e.ndjson.gz", "-"]),
)
@example(store=LARGEST, name="e.ndjson")
@example(store={}, name="-")
def test_what_is_exported_and_imported_is_the_same(
    kvstore: Kvstore, shared_service: Service, other: str, store: dict[str, Any], name: str
) -> None:
    for url in (shared_service.url, other):
        empty(url)
    put_all(shared_service.url, [{"key": key, **fields} for key, fields in store.items()])
    exported = kvstore.out("export", name, *([] if name == "-" else ["--force"]))
    began = time.time() * 1000
    kvstore.out("import", name, "--url", other, stdin=exported)
    took = time.time() * 1000 - began
    there, here = records(shared_service.url), records(other)
    assert kept(here) == kept(there)
    assert list(here) == sorted(here)
    for key, record in there.items():
        assert ("expires_at" in record) == ("expires_at" in here[key])
        if "expires_at" in record:
            assert 0 <= millis(here[key]["expires_at"]) - millis(record["expires_at"]) <= took + 1


def test_a_line_is_the_record_as_the_service_gives_it(kvstore: Kvstore, shared_service: Service) -> None:
    empty(shared_service.url)
    put_all(shared_service.url, [{"key": "a", "value": "1", "ttl": 99}, {"key": "b", "value": "2"}])
    put_all(
        shared_service.url,
        [{"key": "ä\n", "value_b64": "/w=="}, {"key": "b", "value": "3", "message": "why"}],
    )
    exported = kvstore.out("export")
    head, *lines, end = json_lines(exported)
    assert lines == list(records(shared_service.url).values())
    status = httpx.get(f"{shared_service.url}/v1/status", verify=PLAIN).json()
    assert (head["kvstore_export"], head["epoch"]) == (1, status["epoch"])
    assert (head["revision"], head["prefixes"]) == (status["revision"], [])
    before_end = exported[: exported.rindex(b"\n", 0, -1) + 1]
    assert end == {"kvstore_export_end": 1, "records": 3, "sha256": hashlib.sha256(before_end).hexdigest()}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prefix", "a/"], ["a/1", "a/2"]),
        (["--prefix", "b/", "--prefix", "a/", "--prefix", "a/1"], ["a/1", "a/2", "b/1"]),
        (["--start", "a/2"], ["a/2", "b/1", "c"]),
        (["--end", "b/"], ["a/1", "a/2"]),
        (["--start", "a/10", "--end", "a/3"], ["a/2"]),
        (["--prefix", "a", "--prefix", "c", "--start", "a/2", "--end", "c\x01"], ["a/2", "c"]),
        (["--prefix", "none"], []),
    ],
)
def test_prefixes_and_bounds(
    kvstore: Kvstore, shared_service: Service, arguments: list[str], expected: list[str]
) -> None:
    empty(shared_service.url)
    put_all(shared_service.url, [{"key": key, "value": "v"} for key in ("a/1", "a/2", "b/1", "c")])
    lines = json_lines(kvstore.out("export", *arguments))
    assert [line["key"] for line in lines[1:-1]] == expected


def test_the_file_is_private_whole_and_not_replaced_unasked(kvstore: Kvstore, offline: Kvstore) -> None:
    folder = offline.folder
    kvstore.out("export", str(folder / "e"))
    assert (folder / "e").stat().st_mode & 0o777 == 0o600
    (folder / "e").write_text("mine")
    refused = kvstore("export", str(folder / "e"))
    assert (refused.returncode, (folder / "e").read_text()) == (2, "mine")
    assert b"--force" in refused.stderr
    kvstore.out("export", str(folder / "e"), "--force")
    assert b"kvstore_export_end" in (folder / "e").read_bytes()
    assert [path.name for path in folder.iterdir()] == ["e"]
    for target in (folder, folder / "no" / "e"):
        assert kvstore("export", str(target), "--force").returncode == 2


# ── the service goes away ────────────────────────────────────────────────────────────────────────


def many(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"key": f"many/{number:06}", "value": f"value {number}" * 5, **more} for number in range(count)]


def test_an_export_that_cannot_be_finished_leaves_nothing(shared_service: Service, offline: Kvstore) -> None:
    put_all(shared_service.url, many(600))
    with CuttingProxy(shared_service.url, cut_after_bytes=50_000) as proxy:
        url = proxy.endpoint.replace("tcp", "http")
        failed = offline("export", "e", "--url", url, "--retry-for", "1s")
        assert failed.returncode == 6, failed.stderr
        assert b"the stream broke" in failed.stderr
        assert list(offline.folder.iterdir()) == []
        failed = offline("export", "--url", url, "--retry-for", "1s")
        assert (failed.returncode, failed.stdout) == (6, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_export_that_is_ended_leaves_nothing(
    shared_service: Service, offline: Kvstore, start: Start, number: int
) -> None:
    put_all(shared_service.url, many(600))
    with CuttingProxy(shared_service.url, cut_after_bytes=50_000) as proxy:
        running = start(offline, "export", "e", "--url", proxy.endpoint.replace("tcp", "http"))
        wait_until(lambda: "retrying" in running.stderr, what="it is in the middle of it")
        running.process.send_signal(number)
        assert running.wait() == 128 + number
    left = {path.name for path in offline.folder.iterdir()}
    assert left == {running.out_path.name, running.err_path.name}


def test_an_export_without_room_says_so_and_leaves_nothing(shared_service: Service, offline: Kvstore) -> None:
    put_all(shared_service.url, many(600))
    command = " ".join(kvstore_command("export", "e", "--url", shared_service.url))
    limited = ["bash", "-c", f"ulimit -f 64; exec {command}"]
    failed = subprocess.run(limited, capture_output=True, cwd=offline.folder, env=offline.environment)
    assert failed.returncode == 1
    assert b"cannot write a temporary file in" in failed.stderr
    assert list(offline.folder.iterdir()) == []


def test_a_person_sees_how_far_it_is(shared_service: Service, offline: Kvstore) -> None:
    empty(shared_service.url)
    put_all(shared_service.url, many(2000))
    environment = {**offline.environment, "KVSTORE_URL": shared_service.url}
    for arguments, labels in (
        (["export", "e"], ["exporting", "exported 2000 records"]),
        (["import", "e"], ["checking", "importing", "2000 records put"]),
    ):
        with Terminal(kvstore_command(*arguments), (100, 24), environment, offline.folder) as terminal:
            assert terminal.wait() == 0
            for label in labels:
                wait_until(lambda: label in terminal.output, what=label)  # noqa: B023


def test_an_export_outlasts_a_broken_connection(
    shared_service: Service, offline: Kvstore, start: Start
) -> None:
    empty(shared_service.url)
    put_all(shared_service.url, many(600))
    with CuttingProxy(shared_service.url, cut_after_bytes=60_000) as proxy:
        running = start(offline, "export", "e", "--url", proxy.endpoint.replace("tcp", "http"))
        wait_until(lambda: "retrying" in running.stderr, what="it broke")
        proxy.cut_after_bytes = None
        assert running.wait() == 0
    lines = json_lines((offline.folder / "e").read_bytes())
    assert lines[1:-1] == list(records(shared_service.url).values())


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Four clients that write all the while."""
    ledger = Ledger()
    writers = [HttpWriter(f"many/writer{number}", ledger, url) for number in range(4)]
    for writer in writers:
        writer.start()
    try:
        wait_until(lambda: len(ledger) > 20, what="they write")
        yield
    finally:
        for writer in writers:
            writer.finish()


def replayed(url: str, epoch: str, through: int) -> dict[str, Record]:
    """The records as they were at a revision, made from the log alone."""
    found: dict[str, Record] = {}
    query = {"since": f"0-{epoch}"}
    with httpx.stream(
        "GET", f"{url}/v1/subscribe", params=query, headers=NDJSON, timeout=60, verify=PLAIN
    ) as stream:
        for line in map(json.loads, stream.iter_lines()):
            if line["event"] == "heartbeat":
                continue
            if line["event"] == "sync" or line["revision"] > through:
                return found
            assert line["event"] in ("put", "delete", "expire"), line
            found.pop(line["key"], None)
            if line["op"] == "put":
                found[line["key"]] = json.loads(line_of(line))
    raise AssertionError("the stream ended")


def test_an_export_under_load_is_the_store_at_its_revision(
    start_serve: Callable[..., Any], offline: Kvstore
) -> None:
    url = start_serve(workers=1).url
    put_all(url, many(2_000))
    with writing(url):
        before = httpx.get(f"{url}/v1/status", verify=PLAIN).json()["revision"]
        for _ in range(2):
            exported = offline.out("export", "--url", url)
            head, *lines, _ = json_lines(exported)
            assert head["revision"] > before, "nobody wrote meanwhile"
            expected = replayed(url, head["epoch"], head["revision"])
            found = {line["key"]: line for line in lines}
            assert list(found) == sorted(expected.keys() & found.keys())
            assert len(found) == len(lines), "each key once"
            assert found == {key: expected[key] for key in found}
            # one that expired is never given out, and its event may come up to a second later
            for key in expected.keys() - found.keys():
                assert expected[key]["expires_at"] <= head["created_at"]


# ── an import that is interrupted ────────────────────────────────────────────────────────────────


def line_reached(state: Path) -> int:
    """How far an import has come, by its own account."""
    try:
        account = state.read_bytes().strip()
    except FileNotFoundError:
        return 0
    # the room for it is there before it is
    return int(json.loads(account)["line"]) if account else 0


def test_an_import_goes_on_where_it_was_killed(
    shared_service: Service, other: str, offline: Kvstore, start: Start
) -> None:
    """Whatever is sent twice is applied once: every key has its first version."""
    for url in (shared_service.url, other):
        empty(url)
    put_all(shared_service.url, many(5_000))
    source = {"KVSTORE_URL": shared_service.url}
    assert offline("export", "e.gz", env=source).returncode == 0
    state = offline.folder / "e.gz.import-state"
    kills = 0
    for number in itertools.cycle([signal.SIGKILL, signal.SIGINT, signal.SIGTERM]):
        is_begun = line_reached(state) > 0
        target = line_reached(state) + random.randrange(1, 1500)
        running = start(offline, "import", "e.gz", "--url", other)
        wait_until(
            lambda: running.process.poll() is not None or line_reached(state) >= target,  # noqa: B023
            what="it gets on",
            timeout=60,
        )
        running.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: running.process.poll() is not None or is_stopped(running.process.pid))  # noqa: B023
        if state.exists():  # else it is through, and on its way out
            running.process.send_signal(number)
        running.process.send_signal(signal.SIGCONT)
        status = running.wait()
        assert ("resuming after line" in running.stderr) == is_begun
        if status == 0:
            break
        kills += 1
    assert kills > 0
    assert "5000 records put" in running.stderr
    assert not state.exists()
    there, here = records(shared_service.url), records(other)
    assert kept(here) == kept(there)
    assert {record["version"] for record in here.values()} == {1}


def test_an_import_outlasts_restarts_of_the_service(
    start_daemon: Callable[..., Any], start_facade: Callable[..., Any], offline: Kvstore, start: Start
) -> None:
    daemon = start_daemon()
    facade = start_facade(daemon)
    ops = many(6_000)
    write_lines(offline.folder / "f", ops)
    running = start(offline, "import", "f", "--url", facade.url)
    state = offline.folder / "f.import-state"
    for server, restart in ((facade, facade.stop), (daemon, daemon.kill), (facade, facade.kill)):
        target = line_reached(state) + 1000
        wait_until(
            lambda: running.process.poll() is not None or line_reached(state) >= target,  # noqa: B023
            timeout=60,
        )
        restart()
        server.start()
    assert running.wait() == 0, running.stderr
    found = records(facade.url)
    assert [record["value"] for record in found.values()] == [op["value"] for op in ops]
    assert {record["version"] for record in found.values()} == {1}


def test_an_import_gives_up_and_says_how_far_it_came(
    start_serve: Callable[..., Any], offline: Kvstore, start: Start
) -> None:
    serve = start_serve(workers=1)
    write_lines(offline.folder / "f", many(30_000))
    running = start(
        offline, "import", "f", "--url", serve.url, "--retry-for", "1s", "--request-timeout", "1s"
    )
    wait_until(lambda: line_reached(offline.folder / "f.import-state") >= 1000, timeout=60)
    serve.stop()
    assert running.wait() == 6, running.stderr
    assert "the same command resumes there" in running.stderr
    serve.start()
    assert offline("import", "f", "--url", serve.url).returncode == 0
    assert len(records(serve.url)) == 30_000


def interrupted(kvstore: Kvstore, folder: Path) -> dict[str, Any]:
    """Leave a state file behind, as an import of ``folder``/f that was killed does."""
    (folder / "f").write_text('{"key":"i/1","value":"1"}\n{"key":"i/2","value":"2"}\n{"key":5}\n')
    failed = kvstore("import", str(folder / "f"), "--keep-going", "--state", str(folder / "s"))
    assert failed.returncode == 1
    epoch = json.loads(kvstore.out("status", "--json"))["epoch"]
    return {
        "kvstore_import": 1,
        "sha256": hashlib.sha256((folder / "f").read_bytes()).hexdigest(),
        "epoch": epoch,
        "policy": {"if_absent": False, "prefix_strip": "", "prefix_add": "", "keep_going": True},
        "run": "0" * 32,
        "offset": 25,
        "line": 1,
        "tally": {"put": 1, "expired": 0, "existed": 0, "failed": 0},
    }


def test_an_import_does_not_go_on_with_something_else(kvstore: Kvstore, tmp_path: Path) -> None:
    state = interrupted(kvstore, tmp_path)
    arguments = ["import", str(tmp_path / "f"), "--keep-going"]
    kept_state = tmp_path / "f.import-state"
    for change, why in [
        ({"sha256": "0"}, "the file has changed"),
        ({"epoch": "0"}, "another store"),
        ({"policy": {}}, "other options"),
        ({"kvstore_import": 2}, "is not the state of an import"),
        ({"more": 1}, "is not the state of an import"),
    ]:
        kept_state.write_text(json.dumps({**state, **change}))
        refused = kvstore(*arguments)
        assert refused.returncode == 2, refused.stderr
        assert why in " ".join(refused.stderr.decode().split())
    kvstore.out("put", "i/1", "mine")
    kept_state.write_text(json.dumps(state))
    done = kvstore(*arguments)
    assert b"resuming after line 1" in done.stderr
    assert b"2 records put" in done.stderr
    assert kvstore.out("get", "i/1") == b"mine\n"
    kept_state.write_text(json.dumps(state))
    assert b"resuming" not in kvstore(*arguments, "--restart").stderr
    assert kvstore.out("get", "i/1") == b"1\n"
    assert not kept_state.exists()


def test_the_same_file_imported_again_is_put_again(kvstore: Kvstore, tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{"key":"again","value":"1"}\n')
    kvstore.out("import", str(tmp_path / "f"))
    kvstore.out("put", "again", "2")
    kvstore.out("import", str(tmp_path / "f"))
    assert kvstore.out("get", "again") == b"1\n"


# ── what is in the file ──────────────────────────────────────────────────────────────────────────

BAD_LINES = {
    "{": "not JSON",
    "[1]": "not a JSON object",
    '{"value":"v"}': "no key;",
    '{"key":"","value":"v"}': "the key is empty",
    '{"key":"a\\u0000","value":"v"}': "any character but NUL",
    '{"key":"%s","value":"v"}' % ("k" * 512): "the limit is 511",
    '{"key":"k"}': "one of value (text) and value_b64",
    '{"key":"k","value":"v","value_b64":""}': "one of value (text) and value_b64",
    '{"key":"k","value":1}': "must be a string",
    '{"key":"k","value_b64":"?"}': "is not base64",
    '{"key":"k","value":"v","vaule":1}': "unknown member vaule",
    '{"key":"k","value":"v","content_type":"\\n"}': "content_type must be",
    '{"key":"k","value":"v","expires_at":"tomorrow"}': "expires_at is 'tomorrow'",
    '{"key":"k","value":"v","expires_at":"2099-01-01T00:00:00"}': "without a time zone",
    '{"key":"k","value":"v","expires_at":"9999-01-01T00:00:00Z"}': "more than 100 years",
    '{"key":"k","value":"v","ttl":0}': "from 1 ms to 100 years",
    '{"key":"k","value":"v","ttl":"soon"}': "is not a duration",
    '{"key":"k","value":"v","ttl":1,"expires_at":"2099-01-01T00:00:00Z"}': "give one",
    '{"event":"delete","op":"delete","key":"k"}': "only records can",
    '{"key":"k","value":"%s"}' % ("v" * (MOST_BYTES + 1)): "the service takes at most 1048576",
    '{"key":"k","value":"%s"}' % ("v" * 7 * MOST_BYTES): "the most of any record",
    '{"kvstore_export":2}': "format 2",
    '{"kvstore_export_end":1}': "its first line is missing",
    '{"kvstore_export":1}': "truncated",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=list(BAD_LINES.values()))
def test_a_bad_line_is_named_and_nothing_of_its_file_is_put(
    kvstore: Kvstore, tmp_path: Path, line: str
) -> None:
    key = f"bad/{list(BAD_LINES).index(line)}"
    text = f'{{"key":"{key}","value":"1"}}\n\n{line}\n'
    (tmp_path / "f").write_text(text)
    failed = kvstore("import", str(tmp_path / "f"))
    assert failed.returncode == 1
    assert "f: line 3: " in failed.stderr.decode()
    assert BAD_LINES[line] in failed.stderr.decode()
    assert "nothing was put" in failed.stderr.decode()
    assert kvstore("get", key).returncode == 3
    # standard input is read once: what stands before the line is put
    failed = kvstore("import", "-", stdin=text.encode())
    assert failed.returncode == 1
    assert "standard input: line 3: " in failed.stderr.decode()
    assert kvstore.out("get", key) == b"1\n"


def test_a_file_that_is_no_text_is_called_that(kvstore: Kvstore, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00")
    done = kvstore("import", str(tmp_path / "noise"), "--dry-run")
    assert done.returncode == 1
    assert b"line 1: not JSON: not even UTF-8; nothing was put" in done.stderr


def test_keep_going_leaves_out_what_is_wrong(kvstore: Kvstore, tmp_path: Path) -> None:
    kvstore.out("delete", "--prefix", "going/")
    text = '{"kvstore_export":1}\n{"key":"going/1","value":"1"}\nnonsense\n{"key":"going/2","value":"2"}\n'
    (tmp_path / "f").write_text(text)
    for arguments, stdin in (([str(tmp_path / "f")], b""), (["-"], text.encode())):
        done = kvstore("import", *arguments, "--keep-going", stdin=stdin)
        assert done.returncode == 1
        said = done.stderr.decode()
        assert said.count("line 3: not JSON") == 1
        assert "truncated here" in said
        assert "2 records put, 2 lines skipped as unusable" in said
        assert kvstore.out("list", "--prefix", "going/") == b"going/1\ngoing/2\n"


def exported_lines(count: int) -> bytes:
    export = ExportWriter()
    lines = [export.first(epoch="e", revision=1)]
    lines += [
        export.record(line_of({"key": f"k{number}", "value": "v" * number, "revision": number + 1}))
        for number in range(count)
    ]
    return b"".join([*lines, export.last()])


def faults(data: bytes) -> list[str]:
    reader = Reader(io.BytesIO(data), value_bytes=MOST_BYTES)
    return [entry.fault for entry in reader.entries() if entry.put is None]


EXPORT = exported_lines(6)


@given(st.integers(1, len(EXPORT) - 2))
def test_an_export_that_is_cut_off_anywhere_is_noticed(length: int) -> None:
    assert not faults(EXPORT)
    assert faults(EXPORT[:length])


@example(EXPORT.index(b'_end":1') + 6, 1)
@given(st.integers(0, len(EXPORT) - 2), st.integers(1, 255))
def test_an_export_with_another_byte_anywhere_is_noticed(position: int, change: int) -> None:
    changed = bytearray(EXPORT)
    changed[position] ^= change
    assert faults(bytes(changed))


def test_a_damaged_compressed_file_is_refused(kvstore: Kvstore, tmp_path: Path) -> None:
    whole = gzip.compress(b'{"key":"gz/1","value":"1"}\n' * 1000)
    for data, why in ((whole[:-9], "truncated"), (whole[:20] + b"\0" + whole[21:], "damaged")):
        (tmp_path / "f.gz").write_bytes(data)
        failed = kvstore("import", str(tmp_path / "f.gz"))
        assert failed.returncode == 1, failed.stderr
        assert why in failed.stderr.decode()
    assert kvstore("get", "gz/1").returncode == 3


def test_exports_can_be_joined_and_taken_apart(kvstore: Kvstore, other: str) -> None:
    empty(other)
    for key in ("join/a", "join/b"):
        kvstore.out("put", key, key)
    both = kvstore.out("export", "--prefix", "join/a") + kvstore.out("export", "--prefix", "join/b")
    kvstore.out("import", "-", "--url", other, stdin=both)
    assert list(records(other)) == ["join/a", "join/b"]
    empty(other)
    part = b"".join(line for line in both.splitlines(keepends=True) if b"join/b" in line and b'"key"' in line)
    kvstore.out("import", "-", "--url", other, stdin=gzip.compress(part))
    assert list(records(other)) == ["join/b"]


def test_what_other_commands_print_can_be_imported(kvstore: Kvstore, other: str) -> None:
    empty(other)
    kvstore.out("put", "from/a", "-", "--ttl", "1h", stdin=b"\xff\0")
    kvstore.out("put", "from/b", "text", "-m", "why")
    expected = kept(records(kvstore.environment["KVSTORE_URL"], "from/"))
    for arguments in (
        ["get", "--prefix", "from/", "--json"],
        ["subscribe", "--prefix", "from/", "--snapshot", "--count", "2", "--json"],
        ["subscribe", "--prefix", "from/", "--since", "0", "--op", "put", "--count", "2", "--json"],
    ):
        empty(other)
        kvstore.out("import", "-", "--url", other, stdin=kvstore.out(*arguments))
        found = records(other)
        assert kept(found) == expected, arguments
        assert "message" not in found["from/b"], "an import is another change"


# ── what is done with it ─────────────────────────────────────────────────────────────────────────


def test_if_absent_leaves_alone_what_exists(kvstore: Kvstore, tmp_path: Path) -> None:
    kvstore.out("delete", "--prefix", "absent/")
    kvstore.out("put", "absent/1", "mine")
    (tmp_path / "f").write_text('{"key":"absent/1","value":"1"}\n{"key":"absent/2","value":"2"}\n')
    done = kvstore("import", str(tmp_path / "f"), "--if-absent")
    assert done.returncode == 0
    assert b"1 record put, 1 skipped because the key exists" in done.stderr
    assert kvstore.out("get", "absent/1") == b"mine\n"
    assert kvstore.out("get", "absent/2") == b"2\n"
    kvstore.out("import", str(tmp_path / "f"))
    assert kvstore.out("get", "absent/1") == b"1\n"


def test_prefixes_are_exchanged(kvstore: Kvstore, tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{"key":"old/1","value":"1"}\n{"key":"old/2","value":"2"}\n')
    kvstore.out("import", str(tmp_path / "f"), "--prefix-strip", "old/", "--prefix-add", "new/")
    assert kvstore.out("list", "--prefix", "new/") == b"new/1\nnew/2\n"
    for arguments, why in (
        (["--prefix-strip", "other/"], "does not begin with"),
        (["--prefix-strip", "old/1"], "the key is empty"),
        (["--prefix-add", "x" * 510], "the limit is 511"),
    ):
        failed = kvstore("import", str(tmp_path / "f"), *arguments)
        assert failed.returncode == 1
        assert why in failed.stderr.decode()


def test_a_dry_run_changes_nothing(kvstore: Kvstore, tmp_path: Path) -> None:
    kvstore.out("delete", "--prefix", "dry/")
    text = '{"key":"dry/1","value":"1"}\n{"key":"dry/2","value":"2","expires_at":"2020-01-01T00:00:00Z"}\n'
    (tmp_path / "f").write_text(text)
    for arguments in ([str(tmp_path / "f")], ["-"]):
        done = kvstore("import", *arguments, "--dry-run", stdin=text.encode())
        assert done.returncode == 0
        assert b"1 record would be put, 1 skipped because they have expired" in done.stderr
    assert kvstore.out("list", "--prefix", "dry/") == b""
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_what_has_expired_is_left_out_and_the_rest_expires_when_it_should(kvstore: Kvstore) -> None:
    moment = datetime.fromtimestamp(time.time() + 2).astimezone().isoformat(timespec="milliseconds")
    text = (
        '{"key":"expiry/old","value":"1","expires_at":"2020-01-01T00:00:00+02:00"}\n'
        f'{{"key":"expiry/soon","value":"2","expires_at":"{moment}"}}\n'
        '{"key":"expiry/ttl","value":"3","ttl":"1h"}\n'
    )
    done = kvstore("import", "-", stdin=text.encode())
    assert b"2 records put, 1 skipped because they have expired" in done.stderr
    kvstore.out("wait", "expiry/soon", "--gone", "--timeout", "30s")
    assert time.time() * 1000 >= millis(moment)
    assert kvstore.out("list", "--prefix", "expiry/") == b"expiry/ttl\n"


def test_files_that_cannot_be_read_or_kept_account_of(kvstore: Kvstore, tmp_path: Path) -> None:
    assert kvstore("import", str(tmp_path / "none")).returncode == 2
    assert kvstore("import", str(tmp_path)).returncode == 2
    assert kvstore("import", "-", "--state", "s").returncode == 2
    (tmp_path / "f").write_text('{"key":"unkept","value":"1"}\n')
    assert kvstore("import", str(tmp_path / "f"), "--state", os.devnull).returncode == 2
    failed = kvstore("import", str(tmp_path / "f"), "--state", str(tmp_path / "no" / "s"))
    assert failed.returncode == 2
    assert b"--state" in failed.stderr
    assert kvstore("get", "unkept").returncode == 3


def test_a_store_without_room_ends_the_import(start_serve: Callable[..., Any], offline: Kvstore) -> None:
    url = start_serve(workers=1, max_store_bytes="16MiB").url
    write_lines(offline.folder / "f", [{"key": f"k{n}", "value": "v" * 100_000} for n in range(400)])
    failed = offline("import", "f", "--url", url)
    assert failed.returncode == 1
    assert b"f: line " in failed.stderr
    assert b"--max-store-bytes" in failed.stderr
    reached = line_reached(offline.folder / "f.import-state")
    assert reached > 0
    httpx.delete(f"{url}/v1/kv", params={"prefix": "k"}, timeout=60, verify=PLAIN).raise_for_status()
    again = offline("import", "f", "--url", url)
    assert again.returncode == 1, "there is room for some of it, and not for all"
    assert line_reached(offline.folder / "f.import-state") > reached


def test_an_import_keeps_to_the_batches_that_the_service_takes(
    start_serve: Callable[..., Any], offline: Kvstore
) -> None:
    limits = {"max_batch_bytes": "64KiB", "max_value_bytes": "32KiB", "max_atomic_bytes": "32KiB"}
    url = start_serve(workers=1, **limits).url
    write_lines(offline.folder / "f", [{"key": f"k{n}", "value": "v" * n} for n in range(900)])
    done = offline("import", "f", "--url", url)
    assert done.returncode == 0, done.stderr
    assert offline("list", "--count", "--url", url).stdout.strip() == b"900"


def test_an_import_sends_less_at_once_where_the_facade_takes_less(
    daemon: Daemon, start_facade: Callable[..., Facade], offline: Kvstore
) -> None:
    url = start_facade(daemon, max_body_bytes="64KiB").url
    lines: list[Any] = [{"key": f"k{n}", "value": "v" * 20_000} for n in range(20)]
    write_lines(offline.folder / "f", [*lines[:5], {"key": "", "value": ""}, *lines[5:], {"key": ""}])
    done = offline("import", "f", "--keep-going", "--url", url)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        b"kvstore: 20 records put, 2 lines skipped as unusable",
    )
    assert offline("list", "--count", "--url", url).stdout.strip() == b"20"
    write_lines(offline.folder / "g", [*lines, {"key": "large", "value": "v" * 70_000}])
    failed = offline("import", "g", "--url", url)
    assert failed.returncode == 1
    assert b"put up to line 20;" in failed.stderr
    assert b"--max-body-bytes" in failed.stderr
