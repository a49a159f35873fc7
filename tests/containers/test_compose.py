"""``docker compose up -d``: two containers that are healthy, confined, configured and together."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kvstore_core.access.tokens import new_token
from support.containers import DOCKER, ENGINE_SECONDS, Container, run, show
from support.load import LAST_KEY, SseWatcher
from support.markdown import blocks
from support.servers import free_port

pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/containers.md").read_text()


class Project:
    """What the compose file of a folder makes, under a name and with a port of its own.

    ``COMPOSE`` names the command if it is not ``docker compose``.
    """

    def __init__(self, folder: Path, image: str) -> None:
        self.name = f"kvstore-test-{uuid.uuid4().hex[:8]}"
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        self.image = image
        self._folder = folder
        program = shlex.split(os.environ.get("COMPOSE", "")) or [*DOCKER, "compose"]
        self._command = [*program, "--project-name", self.name]

    def __call__(self, *arguments: str, check: bool = True, **options: str) -> str:
        """Run ``docker compose ARGUMENTS`` with ``KVSTORE_*`` options from the shell."""
        given = {"KVSTORE_IMAGE": self.image, "KVSTORE_HTTP": self.address, **options}
        done = show(
            [*self._command, *arguments],
            lambda command: subprocess.run(
                command,
                cwd=self._folder,
                env={**os.environ, **given},
                capture_output=True,
                text=True,
                check=False,
                timeout=ENGINE_SECONDS,
            ),
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def container(self, service: str) -> Container:
        """The container of ``daemon`` or ``http``."""
        return Container(self("ps", "-q", service).strip(), self.url)

    def up(self, **options: str) -> None:
        """Start from whatever is there, and wait until both are healthy."""
        self("up", "-d", **options)
        for service in ("daemon", "http"):
            self.container(service).wait_healthy()


@contextmanager
def in_folder(folder: Path, image: str) -> Iterator[Project]:
    project = Project(folder, image)
    try:
        yield project
    finally:
        project("logs", "--tail", "4", check=False)
        project("down", "--volumes", "--timeout", "10", check=False)


@pytest.fixture
def project(image: str, tmp_path: Path) -> Iterator[Project]:
    """That of a folder with nothing but the file in it."""
    shutil.copy(ROOT / "docker-compose.yaml", tmp_path)
    with in_folder(tmp_path, image) as project:
        yield project


def test_one_command_gives_a_healthy_service_on_loopback_only(project: Project) -> None:
    project.up()
    project.container("http").put("k", "v")
    assert project.container("http").get("k") == "v"
    assert project("exec", "-T", "http", "kvstore", "get", "k") == "v\n"
    published = "{{range $port, $at := .HostConfig.PortBindings}}{{$port}} {{(index $at 0).HostIp}}{{end}}"
    assert project.container("http").inspect(published) == "5000/tcp 127.0.0.1"
    assert project.container("daemon").inspect(published) == ""


def test_the_file_alone_starts_the_image_that_is_named(project: Project, image: str) -> None:
    project.up()
    for service in ("daemon", "http"):
        assert project.container(service).inspect("{{.Config.Image}}") == image


def test_in_a_checkout_the_image_is_built(image: str) -> None:
    """Of a name that is in no registry; on most machines from what is left of ``image``."""
    with in_folder(ROOT, "kvstore-test.invalid/built:checkout") as project:
        project.up()
        project.container("http").put("k", "v")
        assert project.container("http").get("k") == "v"
    run("image", "rm", "kvstore-test.invalid/built:checkout")


def test_nobody_gets_in_without_a_key(project: Project) -> None:
    project.up()
    assert httpx.get(f"{project.url}/v1/kv/k").status_code == 401
    assert httpx.get(f"{project.url}/readyz").status_code == 200
    token = project("exec", "-T", "daemon", "cat", "/data/admin.token").strip()
    assert (
        httpx.get(f"{project.url}/v1/kv/k", headers={"Authorization": f"Bearer {token}"}).status_code == 404
    )
    assert token.split("_")[2] not in project("logs")
    # the facade's container reads the volume, and cannot write to it
    http = project.container("http")
    assert (
        http.exec("sh", "-c", "cat /data/facade.key >/dev/null; touch /data/x || echo refused") == "refused\n"
    )


def test_the_admins_token_may_be_a_secret(project: Project, tmp_path: Path) -> None:
    """As docs/containers.md shows it."""
    (example,) = [block.text for block in blocks(PAGE) if block.language == "yaml"]
    token = new_token().text
    secret = tmp_path / "admin.token"
    secret.write_text(token)
    secret.chmod(0o444)
    (tmp_path / "docker-compose.override.yaml").write_text(example)
    project.up()
    admin = {"Authorization": f"Bearer {token}"}
    assert httpx.put(f"{project.url}/v1/kv/k", content="v", headers=admin).status_code == 201
    assert project("exec", "-T", "daemon", "sh", "-c", "ls /data").split().count("admin.token") == 0


def test_without_access_as_before(project: Project) -> None:
    project.up(KVSTORE_ACCESS="off", KVSTORE_ALLOW_ANONYMOUS="true")
    assert httpx.put(f"{project.url}/v1/kv/k", content="v").status_code == 201


@pytest.mark.parametrize("service", ["daemon", "http"])
def test_both_are_confined(project: Project, service: str) -> None:
    project.up()
    container = project.container(service)
    status = container.exec("cat", "/proc/1/status")
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Uid:\t5000\t5000" in status
    assert container.exec("sh", "-c", "touch /opt/kvstore/x || echo refused") == "refused\n"
    limits = "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.LogConfig.Config}}"
    assert container.inspect(limits) == "1073741824 256 map[max-file:3 max-size:10m]"


def test_options_are_taken_from_the_shell(project: Project) -> None:
    project.up(KVSTORE_MAX_VALUE_BYTES="5", KVSTORE_MAX_STREAMS="0")
    project.container("http").put("k", "12345")
    admin = project.container("http").admin()
    too_large = httpx.put(f"{project.url}/v1/kv/k", content="123456", headers=admin)
    assert too_large.json()["code"] == "value_too_large"
    assert httpx.get(f"{project.url}/v1/subscribe", headers=admin).json()["code"] == "too_busy"


def test_a_killed_daemon_comes_back_and_the_streams_go_on(project: Project, image: str) -> None:
    project.up()
    project.container("http").put("before", "kept")
    watcher = SseWatcher("stream", project.url, headers=project.container("http").admin())
    watcher.start()

    daemon = project.container("daemon")
    daemon.kill_from_outside(image)
    daemon.wait_restarted(1)
    daemon.wait_healthy()
    project.container("http").wait_healthy()

    assert project.container("http").get("before") == "kept"
    project.container("http").put(LAST_KEY, "")
    watcher.finish()
    assert [(seen.revision, seen.key) for seen in watcher.seen] == [(1, "before"), (2, LAST_KEY)]
    assert project.container("http").inspect("{{.RestartCount}}") == "0"


def test_it_stops_cleanly_and_goes_on_with_what_it_had(project: Project) -> None:
    project.up()
    project.container("http").put("k", "v")
    containers = [project.container(service) for service in ("daemon", "http")]
    project("stop")
    assert [container.inspect("{{.State.ExitCode}}") for container in containers] == ["0", "0"]
    project("down")
    project.up()
    assert project.container("http").get("k") == "v"
