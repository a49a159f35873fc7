"""The image: what is in it, how it starts, stops, dies, and is replaced by the next one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from support.containers import DOCKER, Container, run
from support.load import LAST_KEY, SseWatcher

pytestmark = pytest.mark.timeout(3600)

Start = Callable[..., Container]


# ── what is in it ────────────────────────────────────────────────────────────────────────────────


def test_the_labels_name_the_build(image: str) -> None:
    labels = json.loads(run("inspect", "--format", "{{json .Config.Labels}}", image).stdout)
    assert {name.removeprefix("org.opencontainers.image."): text for name, text in labels.items()} == {
        "title": "kvstore",
        "description": "A small key-value store with subscriptions: HTTP, ZeroMQ and a shell",
        "licenses": "MIT",
        "version": "1.0.0-test",
        "revision": "0000000",
        "source": "https://example.org/kvstore",
    }


def test_nothing_that_builds_or_installs_is_left(image: str) -> None:
    look = """
        for program in pip pip3 gcc cc make git hatchling; do command -v $program; done
        for module in pip ensurepip setuptools hatchling mypy pytest; do
            python -c "import $module" 2>/dev/null && echo $module
            /opt/kvstore/bin/python -c "import $module" 2>/dev/null && echo $module
        done
        find / -xdev -type d -name tests -path '*site-packages*'
        true
    """
    assert run("run", "--rm", "--entrypoint=sh", image, "-c", look).stdout == ""


def test_what_the_service_imports_is_compiled(image: str) -> None:
    look = """
import os, sys
import kvstore_cli.main, kvstore_cli.commands.servers, kvstore_daemon.main, kvstore_http.main, kvstore_client
for module in list(sys.modules.values()):
    source, compiled = getattr(module, "__file__", None), getattr(module, "__cached__", None)
    if source and source.endswith(".py") and compiled and not os.path.exists(compiled):
        print(source)
"""
    assert run("run", "--rm", "--entrypoint=/opt/kvstore/bin/python", image, "-c", look).stdout == ""


def test_the_modules_that_can_be_compiled_are(image: str) -> None:
    assert run("run", "--rm", image, "--version").stdout.rstrip().endswith("(compiled)")


def test_it_runs_as_a_user_with_a_number_that_stays(image: str) -> None:
    assert run("run", "--rm", "--entrypoint=id", image, "-u").stdout.strip() == "5000"


def test_the_size_of_it_is_shown(image: str) -> None:
    size = int(run("inspect", "--format", "{{.Size}}", image).stdout)
    run("history", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
    assert size < 250e6


# ── running ──────────────────────────────────────────────────────────────────────────────────────


def test_one_command_gives_a_working_service(image: str, start: Start) -> None:
    container = start(image)
    container.put("greeting", "hello")
    assert container.get("greeting") == "hello"


def test_nobody_gets_in_without_a_key(image: str, start: Start) -> None:
    container = start(image)
    answer = httpx.get(f"{container.url}/v1/kv/k")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    for path in ("/livez", "/readyz"):
        assert httpx.get(f"{container.url}{path}").status_code == 200
    assert container.exec("stat", "-c", "%a %u", "/data/admin.token", "/data/access.key") == "600 5000\n" * 2
    token = container.exec("cat", "/data/admin.token").strip()
    said = run("logs", container.name)
    assert "its token is in /data/admin.token" in said.stderr
    assert token.split("_")[2] not in said.stdout + said.stderr
    # for another user of the container it is nobody's business either
    refused = run("exec", "--user=1234:1234", container.name, "kvstore", "get", "k", check=False)
    assert refused.returncode == 5


def test_without_access_it_opens_only_where_that_is_said_twice(image: str, start: Start) -> None:
    refused = run("run", "--rm", "--env=KVSTORE_ACCESS=off", image, check=False)
    assert refused.returncode == 2
    assert "--allow-anonymous" in refused.stderr
    container = start(image, "--env=KVSTORE_ACCESS=off", "--env=KVSTORE_ALLOW_ANONYMOUS=true")
    assert httpx.put(f"{container.url}/v1/kv/k", content="v").status_code == 201


def test_the_command_works_inside_for_every_user_and_shell(image: str, start: Start) -> None:
    container = start(image)
    container.put("greeting", "hello")
    for user in ("5000", "0"):
        told = container.exec("kvstore", "get", "greeting", options=("--user", user))
        assert told == "hello\n"
    token = container.exec("cat", "/data/admin.token").strip()
    other = ("--user", "1234:1234", "--env", f"KVSTORE_TOKEN={token}")
    assert container.exec("kvstore", "get", "greeting", options=other) == "hello\n"
    assert container.exec("kvstore", "get", "greeting", options=("--tty",)) == "hello\n"
    for shell in ("-c", "-lc"):
        assert container.exec("sh", shell, "kvstore get greeting") == "hello\n"
    container.exec("kvstore", "put", "answer", "42")
    assert container.get("answer") == "42"


def test_it_needs_no_right_and_no_place_but_its_volume(image: str, start: Start) -> None:
    hardened = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp")
    container = start(image, *hardened)
    # larger than what the server keeps of a body in memory
    large = "x" * 900_000
    container.put("large", large)
    assert container.get("large") == large
    assert container.exec("kvstore", "get", "large", "--raw") == large


def test_stopping_is_clean_and_soon(image: str, start: Start) -> None:
    container = start(image)
    assert container.stop() == 0


def test_a_single_part_stops_cleanly_too(image: str, start: Start) -> None:
    container = start(image, "--health-cmd=kvstore ping --daemon", command=("daemon",))
    assert container.stop() == 0


def test_a_folder_of_the_machine_is_used_as_the_user_that_owns_it(
    image: str, start: Start, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    user = f"{os.getuid()}:{os.getgid()}"
    container = start(image, f"--user={user}", f"--volume={tmp_path}:/data")
    container.put("k", "v")
    assert container.exec("kvstore", "get", "k") == "v\n"
    assert (tmp_path / "lmdb" / "data.mdb").stat().st_uid == os.getuid()


def test_a_folder_that_it_cannot_write_to_is_named_with_its_owner(image: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = run("run", "--rm", "--user=4711", f"--volume={tmp_path}:/data", image, check=False)
    assert done.returncode == 1
    assert "the data folder /data cannot be used: Permission denied" in done.stderr
    assert (
        f"it belongs to user {tmp_path.stat().st_uid}, and the daemon runs as user 4711; give it to user 4711"
        in done.stderr
    )


# ── dying and being replaced ─────────────────────────────────────────────────────────────────────


def test_a_killed_container_comes_back_with_its_data_and_its_streams_go_on(
    image: str, start: Start, volume: str
) -> None:
    container = start(image, "--restart=unless-stopped", f"--volume={volume}:/data")
    container.put("before", "kept")
    watcher = SseWatcher("stream", container.url, headers=container.admin())
    watcher.start()

    container.kill_from_outside(image)
    container.wait_restarted(1)
    container.wait_healthy()

    assert container.exec("kvstore", "get", "before") == "kept\n"
    container.put("after", "new")
    container.put(LAST_KEY, "")
    watcher.finish()
    assert [(seen.revision, seen.key) for seen in watcher.seen] == [
        (1, "before"),
        (2, "after"),
        (3, LAST_KEY),
    ]


def test_the_next_image_goes_on_with_the_volume(
    image: str, newer_image: str, start: Start, volume: str
) -> None:
    old = start(image, f"--volume={volume}:/data")
    assert old.put("k", "of the old one") == 1
    assert old.stop() == 0

    new = start(newer_image, f"--volume={volume}:/data")
    assert new.inspect('{{index .Config.Labels "org.opencontainers.image.version"}}') == "2.0.0-test"
    assert new.get("k") == "of the old one"
    assert new.put("k", "of the new one") == 2


def test_a_backup_leaves_one_container_and_fills_the_volume_of_another(
    image: str, start: Start, volume: str, tmp_path: Path
) -> None:
    source = start(image)
    source.put("k", "v")
    backup = tmp_path / "store.kvb"
    with backup.open("wb") as file:
        subprocess.run([*DOCKER, "exec", source.name, "kvstore", "backup", "-"], stdout=file, check=True)
    restore = [*DOCKER, "run", "--rm", "-i", "-v", f"{volume}:/data", image, "restore", "-"]
    with backup.open("rb") as file:
        subprocess.run(restore, stdin=file, check=True)
    copy = start(image, f"--volume={volume}:/data")
    assert copy.get("k") == "v"


def test_two_containers_never_share_a_volume(image: str, start: Start, volume: str) -> None:
    start(image, f"--volume={volume}:/data")
    second = run("run", "--rm", f"--volume={volume}:/data", image, check=False)
    assert second.returncode == 1
    assert "/data is in use by the kvstore daemon" in second.stderr
