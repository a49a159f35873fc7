"""``deploy/compose-cluster.yaml``: a whole cluster that goes on when one of each is killed."""

from __future__ import annotations

import os
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.containers import DOCKER, ENGINE_SECONDS, run, show
from support.servers import free_port, wait_until

pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy/compose-cluster.yaml"
BUILD_ARGS = shlex.split(os.environ.get("CONTAINERS_BUILD_ARGS", ""))
START_SECONDS = 180

OTHERS = """
FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends etcd-server nginx-light \\
    && rm -f /etc/nginx/sites-enabled/default
"""
"""An image with etcd and nginx, of the packages of the image that ours begins with."""


@pytest.fixture(scope="session")
def others(engine: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("others")
    base = (ROOT / "Dockerfile").read_text().split("FROM ")[1].split()[0]
    (folder / "Dockerfile").write_text(OTHERS.format(base=base))
    run("build", *BUILD_ARGS, "--tag", "kvstore-test:others", str(folder))
    return "kvstore-test:others"


class ClusterProject:
    """What the file makes, under a name and with a port of its own."""

    def __init__(self, image: str, others: str, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        tested = folder / "image.yaml"
        parts = ("daemon-a", "daemon-b", "http-a", "http-b")
        services = "".join(f"  {part}: {{image: '{image}'}}\n" for part in parts)
        tested.write_text(f"services:\n{services}")
        program = shlex.split(os.environ.get("COMPOSE", "")) or [*DOCKER, "compose"]
        name = f"kvstore-test-{uuid.uuid4().hex[:8]}"
        self._command = [*program, "--project-name", name, "-f", str(FILE), "-f", str(tested)]
        self._environment = {"KVSTORE_HTTP": self.address, "ETCD_IMAGE": others, "NGINX_IMAGE": others}

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run ``docker compose ARGUMENTS``."""
        environment = {**os.environ, **self._environment}
        done = show(
            [*self._command, *arguments],
            lambda command: subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=ENGINE_SECONDS, env=environment
            ),
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def cluster(image: str, others: str, tmp_path: Path) -> Iterator[ClusterProject]:
    project = ClusterProject(image, others, tmp_path)
    yield project
    project("logs", "--tail", "6", check=False)
    project("down", "--volumes", "--timeout", "10", check=False)


def test_a_cluster_goes_on_when_one_of_each_is_killed(cluster: ClusterProject) -> None:
    cluster("up", "-d")
    token = cluster("exec", "-T", "http-a", "kvstore", "token", "create", "tests", "--grant", "rw:*").strip()
    with httpx.Client(
        base_url=cluster.url, headers={"Authorization": f"Bearer {token}"}, timeout=30
    ) as client:

        def put(key: str) -> bool:
            try:
                return client.put(f"/v1/kv/{key}", content=b"x").status_code in (200, 201)
            except httpx.TransportError:
                return False

        def reads(key: str) -> bool:
            """Whether all of several requests, which nginx spreads, read the value."""
            try:
                return {client.get(f"/v1/kv/{key}").status_code for _ in range(6)} == {200}
            except httpx.TransportError:
                return False

        wait_until(lambda: put("first"), timeout=START_SECONDS, what="it takes writes", every=0.5)
        # the other daemon takes the identity from the first one's file within a second
        wait_until(lambda: reads("first"), timeout=30, what="both facades know the token", every=0.2)
        for service in ("etcd-1", "http-b", "daemon-b"):
            cluster("kill", service)
            wait_until(lambda: put("after"), timeout=60, what=f"writes go on without {service}", every=0.2)
            wait_until(lambda: reads("first"), timeout=60, what=f"reads go on without {service}", every=0.2)
            cluster("up", "-d", service)
            wait_until(lambda: put("again"), timeout=60, what=f"writes go on with {service}", every=0.2)
