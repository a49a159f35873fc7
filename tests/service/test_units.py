"""The units as systemd runs them, with all that they forbid in force."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvstore_core.access.tokens import new_token
from support.machine import Machine, require_machine
from support.markdown import ROOT, blocks
from support.servers import wait_until

DAEMON, FACADE = "kvstore-daemon.service", "kvstore-http.service"

SECRETS = ("access.json", "access.key", "facade.key", "admin.token")
ADMIN_FILE = "/var/lib/kvstore/admin.token"
PAGE = (ROOT / "docs/systemd.md").read_text()

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    require_machine()
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        yield machine
        stop(machine)


def stop(machine: Machine) -> None:
    """Stop both services, which do so cleanly."""
    machine.call("systemctl", "stop", "kvstore-http.socket", FACADE, DAEMON)
    for unit in (DAEMON, FACADE):
        assert machine.property(unit, "Result") == "success"


def change(machine: Machine, unit: str, *settings: str, file: str = "test") -> None:
    """Change the service as ``systemctl edit`` does; it has to be restarted."""
    folder = f"/run/systemd/system/{unit}.d"
    lines = " ".join(f"'{line}'" for line in ("[Service]", *settings))
    machine.shell(
        f"mkdir -p {folder}; printf '%s\\n' {lines} > {folder}/{file}.conf; systemctl daemon-reload"
    )


def start(machine: Machine, *units: str) -> None:
    machine.call("systemctl", "restart", *(units or (DAEMON, FACADE)))


def wait_for(machine: Machine, unit: str, name: str, is_right: Callable[[str], bool]) -> None:
    """Wait until a property of a unit is right; each look at it is two processes."""
    wait_until(lambda: is_right(machine.property(unit, name)), what=f"{name} of {unit}", every=0.1)


@pytest.fixture
def running(machine: Machine) -> Machine:
    """The machine with both services as they were installed, which run on for the next test: a test leaves
    them as it found them."""
    machine.call("systemctl", "start", DAEMON, FACADE)
    return machine


@pytest.fixture
def installed(machine: Machine) -> Iterator[Machine]:
    """The machine with neither service running, for a test that changes their settings and starts them."""
    stop(machine)
    # they would be as many as there are processors, and each takes as long to start as the daemon
    change(machine, FACADE, "Environment=KVSTORE_WORKERS=1", file="workers")
    yield machine
    stop(machine)
    machine.shell("rm -rf /etc/kvstore/* /run/systemd/system/kvstore-*; systemctl daemon-reload")
    machine.shell(f"cd /var/lib/kvstore; rm -f {' '.join(SECRETS)}")


def test_the_service_works_and_everything_that_it_does_is_allowed(running: Machine) -> None:
    before = {unit: running.property(unit, "NRestarts") for unit in (DAEMON, FACADE)}
    for unit, said in ((DAEMON, "tcp://127.0.0.1:5555"), (FACADE, "http://127.0.0.1:5000")):
        assert said in running.property(unit, "StatusText")
    running.kvstore("put", "color/sky", "blue", "--ttl", "1h")
    assert running.kvstore("get", "color/sky") == "blue"
    assert running.kvstore("list", "color/") == "color/sky"
    assert "color/sky" in running.kvstore("subscribe", "--prefix", "color/", "--since", "0", "--count", "1")
    assert "blue" in running.kvstore("export")
    running.kvstore("status")
    running.kvstore("backup", "/root/backup", "--data", "/var/lib/kvstore")
    running.kvstore("put", "color/sky", "grey")
    assert "not permitted" not in running.journal().lower()
    for unit in (DAEMON, FACADE):
        assert running.property(unit, "NRestarts") == before[unit]


@pytest.mark.parametrize("unit", [DAEMON, FACADE])
def test_the_service_is_confined(running: Machine, unit: str) -> None:
    pid = running.property(unit, "MainPID")
    status = dict(re.findall(r"(\w+):\s+(.*)", running.call("cat", f"/proc/{pid}/status")))
    assert "0" not in status["Uid"].split()
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Umask"] == "0077"
    for namespace in ("mnt", "user", "ipc", "uts"):
        theirs = running.call("readlink", f"/proc/{pid}/ns/{namespace}")
        assert theirs != running.call("readlink", f"/proc/1/ns/{namespace}"), namespace
    mounts = running.call("cat", f"/proc/{pid}/mounts").splitlines()
    writable = {line.split()[1] for line in mounts if line.split()[3].startswith("rw")}
    assert "/" not in writable
    assert ("/var/lib/private/kvstore" in writable) == (unit == DAEMON)


def test_what_is_killed_is_started_again(running: Machine) -> None:
    running.kvstore("put", "key", "value")
    for unit in (DAEMON, FACADE):
        restarts = int(running.property(unit, "NRestarts"))
        running.call("systemctl", "kill", "--signal=KILL", unit)
        wait_for(running, unit, "NRestarts", lambda seen, before=restarts: int(seen) > before)  # type: ignore[misc]
        wait_for(running, unit, "ActiveState", "active".__eq__)
    assert running.kvstore("get", "key") == "value"


@pytest.mark.parametrize("place", ["/var/lib/private/kvstore/lmdb", "/var/lib/private/kvstore"])
def test_what_root_put_back_belongs_to_the_daemon_again(running: Machine, place: str) -> None:
    running.kvstore("put", "key", place)
    running.call("systemctl", "stop", DAEMON)
    running.shell(f"rm -rf /root/copy; cp -r {place} /root/copy; rm -r {place}; cp -r /root/copy {place}")
    assert running.call("stat", "--format=%u", place) == "0"
    running.call("systemctl", "start", DAEMON)
    assert running.call("stat", "--format=%u", place) != "0"
    assert running.kvstore("get", "key") == place


def test_a_command_of_root_leaves_nothing_that_locks_the_daemon_out(running: Machine) -> None:
    running.shell("systemctl stop kvstore-daemon; rm -f /var/lib/kvstore/lmdb/lock.mdb")
    running.kvstore("check", "--data", "/var/lib/kvstore")
    running.call("systemctl", "start", DAEMON)
    running.kvstore("status")


@pytest.mark.parametrize("unit", [DAEMON, FACADE])
def test_what_hangs_is_started_again(installed: Machine, unit: str) -> None:
    change(installed, unit, "WatchdogSec=5", "TimeoutAbortSec=1")
    start(installed)
    installed.call("kill", "-STOP", installed.property(unit, "MainPID"))
    wait_for(installed, unit, "NRestarts", lambda seen: int(seen) > 0)
    wait_for(installed, unit, "ActiveState", "active".__eq__)
    installed.kvstore("status")


def test_an_option_that_cannot_be_used_is_not_tried_again(installed: Machine) -> None:
    installed.shell("echo KVSTORE_SYNC=perhaps > /etc/kvstore/kvstore.env")
    installed.call("systemctl", "restart", DAEMON, check=False)
    assert installed.property(DAEMON, "ActiveState") == "failed"
    assert installed.property(DAEMON, "ExecMainStatus") == "2"
    assert "'perhaps' is not one of always, interval, none" in installed.journal(DAEMON)
    installed.shell("rm /etc/kvstore/kvstore.env")
    start(installed, DAEMON)


def test_other_machines_are_kept_out_until_a_drop_in_lets_them_in(installed: Machine) -> None:
    installed.call("ip", "address", "replace", "10.9.9.9/32", "dev", "lo")
    settings = "Environment=KVSTORE_HTTP=0.0.0.0:5000 KVSTORE_ALLOW_ANONYMOUS=true"
    ask = ["curl", "--silent", "--max-time", "2", "--interface", "10.9.9.9", "http://10.9.9.9:5000/livez"]
    change(installed, FACADE, settings)
    start(installed)
    installed.kvstore("status")
    assert installed.call(*ask, check=False) == ""
    change(installed, FACADE, settings, "IPAddressAllow=10.0.0.0/8")
    start(installed, FACADE)
    assert "alive" in installed.call(*ask)


def test_with_the_socket_unit_a_restart_refuses_nobody(installed: Machine) -> None:
    start(installed, DAEMON, "kvstore-http.socket")
    assert installed.property(FACADE, "ActiveState") == "inactive"
    ask = "curl --silent --max-time 60 --output /dev/null --write-out '%{exitcode} ' http://127.0.0.1:5000/livez"
    assert installed.shell(ask) == "0"
    # asks before, while and after it restarts: the job is done when the loop is
    asking = f"for n in $(seq 100); do {ask} || true; done"
    ends = installed.shell(f"systemctl restart {FACADE} & {asking}; wait $!").split()
    # 52: the facade had accepted the connection and stopped before the request came; 7 would be refused
    assert set(ends) <= {"0", "52"}
    assert ends.count("0") > 90


def install_settings(machine: Machine) -> None:
    """Give it the settings that come with a first installation."""
    machine.shell("install -m 640 /opt/kvstore/source/deploy/systemd/kvstore.env /etc/kvstore/kvstore.env")


def status_of(machine: Machine, *more: str, path: str = "/v1/kv/key") -> str:
    """With what ``path`` is answered."""
    ask = ("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}")
    return machine.call(*ask, *more, f"http://127.0.0.1:5000{path}")


def drop_in(heading: str) -> list[str]:
    """The settings that the page has written into an editor under ``heading``."""
    (block,) = [each for each in blocks(PAGE) if heading in each.headings and "opens an editor" in each.text]
    lines = re.findall(r"^#   (.*)$", block.text, re.MULTILINE)
    return lines[lines.index("[Service]") + 1 :]


def test_without_those_settings_everything_is_as_it_was_and_with_them_nobody_gets_in_without_a_key(
    installed: Machine,
) -> None:
    """The first is what an upgrade finds: settings that say nothing of access, and no identities."""
    start(installed)
    installed.kvstore("put", "key", "value")
    assert status_of(installed) == "200"
    install_settings(installed)
    start(installed)
    assert status_of(installed) == "401"
    for path in ("/livez", "/readyz"):
        assert status_of(installed, path=path) == "200"
    refused = installed.call("/opt/kvstore/bin/kvstore", "ping", check=True)
    assert refused
    assert installed.kvstore("get", "key", "--token-file", ADMIN_FILE) == "value"
    installed.kvstore("put", "key", "2", "--token-file", ADMIN_FILE)
    for unit in (DAEMON, FACADE):
        assert installed.property(unit, "NRestarts") == "0"


def test_secrets_are_for_the_services_alone(installed: Machine) -> None:
    install_settings(installed)
    start(installed)
    files = installed.shell(f"cd /var/lib/kvstore; stat --format='%n %a' {' '.join(SECRETS)}").splitlines()
    assert files == [f"{name} 600" for name in SECRETS]
    # the facade has its key as a credential, and sees nothing of the folder
    pid = installed.property(FACADE, "MainPID")
    as_facade = (
        "nsenter",
        f"--target={pid}",
        "--mount",
        f"--setuid={installed.call('stat', '-c%u', f'/proc/{pid}')}",
    )
    key = "/run/credentials/kvstore-http.service/facade.key"
    assert "secret_key" in installed.call(*as_facade, "cat", key)
    assert installed.call(*as_facade, "cat", f"/var/lib/kvstore/{SECRETS[0]}", check=False) == ""
    token = installed.call("cat", ADMIN_FILE)
    secret = installed.shell(f'sed -n \'s/.*"secret_key": "\\(.*\\)".*/\\1/p\' {key}')
    assert len(secret) == 40
    said = installed.journal() + installed.shell(
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'"
    )
    assert ADMIN_FILE in said
    for text in (token.split("_")[2], secret):
        assert text not in said


def test_a_facade_that_comes_before_the_daemon_has_made_its_key_waits_for_it(installed: Machine) -> None:
    """As on a first start whose daemon has a full disk."""
    install_settings(installed)
    change(installed, DAEMON, "ExecStartPre=/bin/false")
    installed.call("systemctl", "start", "--no-block", DAEMON, FACADE)
    wait_for(installed, FACADE, "NRestarts", lambda seen: int(seen) > 0)
    assert "has no keys" in installed.journal(FACADE)
    change(installed, DAEMON)
    start(installed, DAEMON)
    wait_for(installed, FACADE, "ActiveState", "active".__eq__)
    assert status_of(installed) == "401"
    installed.kvstore("status", "--token-file", ADMIN_FILE)


def test_the_admins_token_may_be_a_credential(installed: Machine) -> None:
    token = new_token().text
    installed.shell(f"umask 077; echo {token} > /etc/kvstore/admin.token")
    change(installed, DAEMON, *drop_in("A token of your own"))
    start(installed)
    assert status_of(installed) == "401"
    assert status_of(installed, "--header", f"Authorization: Bearer {token}") in ("200", "404")
    assert installed.shell("ls /var/lib/kvstore").split().count("admin.token") == 0


def test_the_certificate_and_its_key_are_credentials(installed: Machine) -> None:
    install_settings(installed)
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout privkey.pem -out fullchain.pem 2>&1"
    )
    installed.shell(f"mkdir -p /root/certificate; cd /root/certificate; umask 077; {make}")
    lines = [
        line.replace("/etc/letsencrypt/live/kv.example.org", "/root/certificate") for line in drop_in("TLS")
    ]
    change(installed, FACADE, *lines)
    start(installed)
    there = ("--ca-file", "/root/certificate/fullchain.pem", "--url", "https://127.0.0.1:5000")
    installed.kvstore("put", "key", "value", *there, "--token-file", ADMIN_FILE)
    assert status_of(installed) == "400"


def test_uninstalling_stops_the_services_and_leaves_the_store_until_it_is_purged(tmp_path: Path) -> None:
    require_machine()
    with Machine(tmp_path) as machine:
        machine.shell(f"systemctl enable --quiet --now {DAEMON} {FACADE} kvstore-http.socket")
        machine.kvstore("put", "key", "value")
        machine.shell("cp -r /opt/kvstore/source/deploy /root; touch /etc/kvstore/kvstore.env")
        # of this installation, parts are mounted and can only be detached
        machine.shell(f"systemctl stop kvstore-http.socket {FACADE} {DAEMON}")
        machine.shell("cd /opt/kvstore; umount python site source")
        machine.call("/root/deploy/systemd/install", "--uninstall")
        assert machine.call("systemctl", "list-units", "--all", "--no-legend", "kvstore-*") == ""
        assert machine.shell("find /etc/systemd /opt -maxdepth 2 -name 'kvstore*'") == ""
        machine.shell("test -e /var/lib/kvstore/lmdb/data.mdb -a -e /etc/kvstore/kvstore.env")
        machine.call("/root/deploy/systemd/install", "--uninstall", "--purge", "--yes")
        assert machine.shell("find /var/lib /etc -name '*kvstore*'") == ""
