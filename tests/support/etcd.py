"""etcd as real processes: one member or a cluster, which tests kill, stop, restart and restore.

``KVSTORE_TEST_ETCD`` names another ``etcd`` than the one that is installed; ``etcdctl`` and ``etcdutl``
beside it are used then. Where there is none, the test is skipped, and under CI it fails.
"""

from __future__ import annotations

import base64
import functools
import http.client
import itertools
import json
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode

from support.programs import openssl, require_program
from support.servers import dies_with_us, free_port, is_stopped, wait_until

READY_SECONDS = 60
STOP_SECONDS = 20
PASSWORD = "known to the tests"  # noqa: S105 - of servers that end with the test
STOPPED_STATUSES = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
"""etcd ends by the signal that it was stopped with."""

# A member alone need not wait for others before it leads. The defaults for a cluster: shorter times would
# elect anew whenever the machine is busy.
_ALONE = ("--heartbeat-interval", "10", "--election-timeout", "100")


def etcd_program(name: str = "etcd") -> str:
    """The path of ``etcd``, ``etcdctl`` or ``etcdutl``."""
    chosen = os.environ.get("KVSTORE_TEST_ETCD")
    if chosen and (beside := Path(chosen).with_name(name)).exists():
        return str(beside)
    return require_program(name)


@functools.cache
def etcd_version() -> tuple[int, ...]:
    """The version of the ``etcd`` that the tests start: ``(3, 4, 23)``."""
    said = subprocess.run([etcd_program(), "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in said.split()[2].split("."))


class Certificates(NamedTuple):
    """Files in PEM: an authority, and a certificate with its key for servers and one for clients."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path


def make_certificates(folder: Path, *, client_name: str = "kvstore") -> Certificates:
    """An authority of its own in ``folder``, a certificate for 127.0.0.1 and localhost, and one for a client
    whose common name is ``client_name``."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key = folder / "ca.pem", folder / "ca.key"
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*new, "-x509", "-days", "30", "-subj", "/CN=the tests' authority", "-keyout", ca_key, "-out", ca)

    def signed(name: str, subject: str, *extensions: str) -> tuple[Path, Path]:
        cert, key, request = (folder / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        openssl(*new, "-subj", subject, *extensions, "-keyout", key, "-out", request)
        by = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "30", "-copy_extensions", "copy")
        openssl("x509", "-req", "-in", request, *by, "-out", cert)
        return cert, key

    names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1")
    server = signed("server", "/CN=localhost", *names)
    return Certificates(ca, *server, *signed("client", f"/CN={client_name}"))


class EtcdMember:
    """One ``etcd`` process with its data and its stderr in ``folder``."""

    def __init__(self, cluster: EtcdCluster, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self._restores = 0

    @property
    def url(self) -> str:
        """Where clients are answered: ``http://127.0.0.1:PORT``, with TLS ``https``."""
        return f"{self._cluster.scheme}://{self.endpoint}"

    @property
    def data(self) -> Path:
        """The data folder; a restore goes to a new one."""
        return self.folder / f"data{self._restores}"

    def cpu_seconds(self) -> float:
        """How much time of processors it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def pid(self) -> int:
        """The process id of the present, or of the last, process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there now; one that is stopped by SIGSTOP is."""
        return self._process is not None and self._process.poll() is None

    @property
    def stderr(self) -> str:
        """What it wrote, over all its restarts."""
        log = self.folder / "stderr"
        return log.read_text(errors="replace") if log.exists() else ""

    def begin(self) -> None:
        """Start the process and do not wait for anything: without the others it may never be ready."""
        assert not self.is_running, f"{self.name} runs already"
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "stderr").open("ab") as log:
            self._process = subprocess.Popen(
                dies_with_us([etcd_program(), *self._cluster.arguments(self)]),
                env=_environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> Self:
        """Start the process and return once it answers linearizable reads."""
        self.begin()
        return self.wait_until_ready()

    def wait_until_ready(self) -> Self:
        """Return once it knows a leader and answers a read through it."""
        wait_until(self._is_ready, timeout=READY_SECONDS, what=f"{self.name} is ready", every=0.02)
        return self

    def _is_ready(self) -> bool:
        assert self.is_running, f"{self.name} ended before it was ready:\n{self.stderr[-4000:]}"
        try:
            return self._health() in ("true", True)
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def _health(self) -> Any:
        if self._cluster.scheme == "https":
            context = self._cluster.tls()
            connection = http.client.HTTPSConnection(self.endpoint, timeout=STOP_SECONDS, context=context)
        else:
            connection = http.client.HTTPConnection(self.endpoint, timeout=STOP_SECONDS)
        try:
            connection.request("GET", "/health")
            return json.loads(connection.getresponse().read())["health"]
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """What it says of itself: ``header``, ``leader``, ``raftTerm``, ``version``, ``dbSize``, …"""
        (found,) = self._cluster.etcdctl_json("endpoint", "status", at=self)
        status: dict[str, Any] = found["Status"]
        return status

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    def pause(self) -> None:
        """SIGSTOP, and wait until it holds: the member stays connected and answers nothing."""
        self._signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(self.pid), what=f"{self.name} is stopped")

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stopped by SIGSTOP meanwhile."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def stop(self) -> None:
        """SIGTERM, and check that it ends by that. One that does not run is left alone."""
        if not self.is_running:
            return
        assert self._process is not None
        self._signal(signal.SIGTERM)
        self.resume()
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop on SIGTERM:\n{self.stderr[-4000:]}") from None
        assert status in STOPPED_STATUSES, f"{self.name} ended with {status}:\n{self.stderr[-4000:]}"

    def restart(self) -> Self:
        """Stop, if it runs, and start again on the same addresses and data."""
        self.stop()
        return self.start()

    def begin_anew(self) -> None:
        """Have an empty place for data that were restored."""
        self._restores += 1

    def _signal(self, number: int) -> None:
        if self.is_running:
            os.kill(self.pid, number)


class EtcdCluster:
    """``size`` members that are one cluster, each started by :meth:`start`.

    ``certificates`` has clients come by TLS, and ``is_mutual`` also show a certificate of the same authority;
    members speak to each other in the clear. ``users`` turns authentication on, with a root user and
    the named ones, who may do everything, all with :data:`PASSWORD`. ``is_durable`` False saves the syncs
    where the server can: for tests that do not kill all members. ``flags`` are etcd's own.
    """

    def __init__(
        self,
        folder: Path,
        size: int = 1,
        *,
        certificates: Certificates | None = None,
        is_mutual: bool = False,
        users: Sequence[str] = (),
        is_durable: bool = True,
        flags: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificates = certificates
        self._is_mutual = is_mutual
        self._users = users
        self._flags = [*(() if is_durable else _unsynced()), *flags]
        self._token = folder.name
        self._has_users = False
        self.members = [EtcdMember(self, f"etcd{number}", folder / f"etcd{number}") for number in range(size)]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "http" if self.certificates is None else "https"

    @property
    def endpoints(self) -> list[str]:
        """``["127.0.0.1:PORT", …]``"""
        return [member.endpoint for member in self.members]

    def address(self, prefix: str = "/kvstore", **parameters: str | Path) -> str:
        """What ``--engine`` takes, with the certificates that a client needs here."""
        if self.certificates is not None:
            parameters.setdefault("ca", self.certificates.ca)
            if self._is_mutual:
                parameters.setdefault("cert", self.certificates.client_cert)
                parameters.setdefault("key", self.certificates.client_key)
        words = urlencode({name.replace("_", "-"): value for name, value in parameters.items()}, safe="/")
        return f"etcd://{','.join(self.endpoints)}{quote(prefix)}{words and '?' + words}"

    def store_address(self, data: Path) -> str:
        """What ``--engine`` takes for the store that belongs to a data folder: the same for the same folder,
        and no other's."""
        return self.address(f"/store{data.absolute()}")

    def add_flags(self, *flags: str) -> None:
        """More flags, for members that are started from now on."""
        self._flags += flags

    def arguments(self, member: EtcdMember) -> list[str]:
        """The command line of one of the members."""
        line = ["--name", member.name, "--data-dir", str(member.data), "--logger", "zap"]
        line += ["--log-outputs", "stderr", "--log-level", "warn"]
        line += _addresses("client-urls", member.url, "listen", "advertise")
        line += _addresses("peer-urls", member.peer_url, "listen", "initial-advertise")
        line += ["--initial-cluster", self._initial_cluster, "--initial-cluster-token", self._token]
        if self.certificates is not None:
            line += ["--cert-file", str(self.certificates.cert), "--key-file", str(self.certificates.key)]
            if self._is_mutual:
                line += ["--client-cert-auth", "--trusted-ca-file", str(self.certificates.ca)]
        if self._users:
            line += ["--bcrypt-cost", "4"]
        if len(self.members) == 1:
            line += _ALONE
        return [*line, *self._flags]

    @property
    def _initial_cluster(self) -> str:
        return ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    def tls(self) -> ssl.SSLContext:
        """With which a client here speaks to the members."""
        assert self.certificates is not None
        context = ssl.create_default_context(cafile=str(self.certificates.ca))
        context.load_cert_chain(self.certificates.client_cert, self.certificates.client_key)
        return context

    def start(self) -> Self:
        """Start the members that do not run, and return once all are ready."""
        for member in self.members:
            if not member.is_running:
                member.begin()
        try:
            for member in self.members:
                member.wait_until_ready()
        except BaseException:
            self.kill()
            raise
        if self._users and not self._has_users:
            self._turn_authentication_on()
        return self

    def _turn_authentication_on(self) -> None:
        for user in ("root", *self._users):
            self.etcdctl("user", "add", f"{user}:{PASSWORD}")
            self.etcdctl("user", "grant-role", user, "root")
        self.etcdctl("auth", "enable")
        self._has_users = True

    def stop(self) -> None:
        """SIGTERM to all, and check that each ends by that."""
        failures: list[Exception] = []
        for member in self.members:
            try:
                member.stop()
            except AssertionError as failure:
                failures.append(failure)
        if failures:
            raise ExceptionGroup("etcd did not stop as it must", failures)

    def kill(self) -> None:
        """SIGKILL to all that run, at once."""
        running = [member for member in self.members if member.is_running]
        for member in running:
            os.kill(member.pid, signal.SIGKILL)
        for member in running:
            member.kill()

    def leader(self) -> EtcdMember:
        """The member that leads, waited for. Of two that say so, as after a pause, the one of the later
        term."""

        def find() -> EtcdMember | None:
            said = [(member, member.status()) for member in self._running]
            leaders = [
                (status["raftTerm"], member)
                for member, status in said
                if status.get("leader") == status["header"]["member_id"]
            ]
            return max(leaders, key=lambda found: found[0], default=(0, None))[1]

        found = wait_until(find, timeout=READY_SECONDS, what="a member leads", every=0.05)
        assert found is not None
        return found

    def followers(self) -> list[EtcdMember]:
        """The running members that do not lead."""
        leader = self.leader()
        return [member for member in self._running if member is not leader]

    @property
    def _running(self) -> list[EtcdMember]:
        """Those that can answer."""
        return [member for member in self.members if member.is_running and not is_stopped(member.pid)]

    def etcdctl(
        self, *words: str, stdin: bytes = b"", at: EtcdMember | None = None, user: str | None = "root"
    ) -> str:
        """What ``etcdctl`` prints, asked of all members or of the one given; it has to succeed. ``user``
        matters where there are users."""
        endpoints = [at.url] if at else [member.url for member in self.members]
        options = ["--endpoints", ",".join(endpoints), "--command-timeout", "20s"]
        if self.certificates is not None:
            options += ["--cacert", str(self.certificates.ca)]
            options += ["--cert", str(self.certificates.client_cert)]
            options += ["--key", str(self.certificates.client_key)]
        if self._has_users and user:
            options += ["--user", f"{user}:{PASSWORD}"]
        return _run([etcd_program("etcdctl"), *options, *words], stdin)

    def etcdctl_json(self, *words: str, at: EtcdMember | None = None) -> Any:
        """The same, read from ``--write-out=json``."""
        return json.loads(self.etcdctl(*words, "--write-out=json", at=at))

    def keys(self, prefix: str) -> dict[bytes, tuple[bytes, int]]:
        """All keys below ``prefix`` with their values and mod_revisions, by a linearizable read."""
        pairs = self.etcdctl_json("get", "--prefix", prefix).get("kvs", ())
        return {
            base64.b64decode(pair["key"]): (base64.b64decode(pair.get("value", "")), pair["mod_revision"])
            for pair in pairs
        }

    def revision(self) -> int:
        """The cluster's present revision."""
        found: int = self.etcdctl_json("get", "no such key")["header"]["revision"]
        return found

    def compact(self, revision: int) -> None:
        """Forget what came before ``revision``, and wait until that is done."""
        self.etcdctl("compact", "--physical", str(revision))

    def snapshot(self, file: Path) -> Path:
        """Write a snapshot of the first running member to ``file``."""
        self.etcdctl("snapshot", "save", str(file), at=self._running[0])
        return file

    def restore(self, file: Path, *flags: str) -> Self:
        """Stop all members, and start them with the data of a snapshot, as a new cluster on the same
        addresses. ``flags`` are those of ``snapshot restore``."""
        self.stop()
        self._token = f"{self._token}+"
        # since 3.5 a program of its own does it, and etcdctl says that it will no longer
        beside = Path(etcd_program()).with_name("etcdutl")
        program = str(beside) if beside.exists() else etcd_program("etcdctl")
        for member in self.members:
            member.begin_anew()
            line = [program, "snapshot", "restore", str(file), "--name", member.name]
            line += ["--data-dir", str(member.data), "--initial-advertise-peer-urls", member.peer_url]
            line += ["--initial-cluster", self._initial_cluster, "--initial-cluster-token", self._token]
            _run([*line, *flags])
        return self.start()


def fresh_prefix() -> str:
    """A prefix for the keys of one store, used by no other of the run."""
    return f"/test-{os.getpid()}-{next(_numbers)}"


_numbers = itertools.count()


def _environment() -> dict[str, str]:
    """Without what would configure etcd or etcdctl on this machine."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ETCD_", "ETCDCTL_")) and "proxy" not in name.lower()
    } | {"ETCDCTL_API": "3"}


@functools.cache
def _unsynced() -> tuple[str, ...]:
    said = subprocess.run([etcd_program(), "--help"], capture_output=True, text=True, check=False)
    return ("--unsafe-no-fsync",) if "--unsafe-no-fsync" in said.stdout + said.stderr else ()


def _addresses(kind: str, url: str, *whose: str) -> list[str]:
    return [word for who in whose for word in (f"--{who}-{kind}", url)]


def _run(command: list[str], stdin: bytes = b"") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, env=_environment(), timeout=60, check=False
    )
    assert done.returncode == 0, f"{shutil.which(command[0])}: {done.stderr.decode()}"
    return done.stdout.decode()
