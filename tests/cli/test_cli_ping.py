"""``kvstore ping`` tells whether the service answers, and ends soon where it does not."""

from __future__ import annotations

from typing import Any

import pytest

from support.servers import Daemon, Facade, Service, free_port

Kvstore = Any


def test_a_service_that_answers_is_ready(kvstore: Kvstore, service: Service) -> None:
    assert kvstore.out("ping", "--url", service.url) == f"{service.url} is ready\n".encode()


def test_the_facade_is_not_ready_without_the_daemon(kvstore: Kvstore, service: Service) -> None:
    service.daemon.stop()
    done = kvstore("ping", "--url", service.url)
    # unavailable, or still waiting for the daemon when the time is over
    assert done.returncode in (6, 124)
    assert done.stdout == b""


def test_where_nobody_listens_nothing_is_ready(kvstore: Kvstore) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = kvstore("ping", "--url", url)
    assert (done.returncode, done.stdout) == (6, b"")
    assert f"cannot reach the service at {url}" in done.stderr.decode()


def test_the_daemon_answers_for_itself(kvstore: Kvstore, daemon: Daemon) -> None:
    done = kvstore("ping", "--daemon", env={"KVSTORE_REQUESTS": daemon.requests})
    assert done.stdout.decode() == f"{daemon.requests} is ready\n", done.stderr


@pytest.mark.parametrize("anywhere", ["0.0.0.0", "*"])
def test_a_daemon_that_listens_everywhere_is_asked_on_this_machine(
    kvstore: Kvstore, daemon: Daemon, anywhere: str
) -> None:
    everywhere = daemon.requests.replace("127.0.0.1", anywhere)
    assert kvstore("ping", "--daemon", env={"KVSTORE_REQUESTS": everywhere}).returncode == 0


def test_a_facade_is_no_daemon(kvstore: Kvstore, facade: Facade) -> None:
    requests = facade.url.replace("http", "tcp")
    done = kvstore("ping", "--daemon", "--request-timeout", "500ms", env={"KVSTORE_REQUESTS": requests})
    assert (done.returncode, done.stdout) == (6, b"")
