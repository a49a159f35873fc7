"""What etcd has against a call: sizes, a full database, leases, users, certificates."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store.connection import api, cluster
from kvstore_daemon.storage.etcd_store.connection.address import parse_address
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from support.etcd import PASSWORD, Certificates, EtcdCluster, fresh_prefix, make_certificates
from support.markdown import ROOT, table_rows
from support.programs import openssl
from support.servers import free_port

PATIENCE = 60.0
MIB = 1 << 20

StartEtcd = Callable[..., EtcdCluster]


@pytest.fixture
def client(etcd: EtcdCluster) -> Iterator[Cluster]:
    with Cluster(parse_address(etcd.address())) as found:
        yield found


def put(client: Cluster, key: bytes = b"k", value: bytes = b"v", lease: int = 0) -> int:
    request = api.TxnRequest()
    api.add_put(request.success, key, value, lease)
    revision: int = client.call(api.TXN, request, PATIENCE).header.revision
    return revision


def failure(call: Callable[[], object]) -> EtcdError:
    with pytest.raises(EtcdError) as caught:
        call()
    return caught.value


# ── sizes, room, leases ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        # three that have nothing in common but the code
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", "not_sent"),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", "full"),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (3 vs. 2)", "too_large"),
        ("RESOURCE_EXHAUSTED", "anything else", "unknown"),
        ("UNAVAILABLE", "etcdserver: no leader", "not_sent"),
        ("UNAVAILABLE", "etcdserver: leader changed", "unknown"),
        ("UNAVAILABLE", "etcdserver: request timed out, possibly due to previous leader failure", "unknown"),
        ("UNAVAILABLE", "etcdserver: rpc not supported for learner", "not_sent"),
        ("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner", "not_sent"),
        ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", "auth"),
        ("INVALID_ARGUMENT", "etcdserver: invalid auth management", "refused"),
        ("DATA_LOSS", "etcdserver: corrupt cluster", "refused"),
        ("CANCELLED", "etcdserver: request canceled", "unknown"),
        ("INTERNAL", "", "unknown"),
        ("UNKNOWN", "", "unknown"),
    ],
)
def test_what_one_code_is_used_for_is_told_apart(code: str, said: str, kind: str) -> None:
    """In etcd's words, most of which no healthy member can be brought to say."""
    assert cluster._kind(grpc.StatusCode[code], said) == kind


def test_requests_that_are_too_large_are_told_apart_from_a_full_database(client: Cluster) -> None:
    assert failure(lambda: put(client, value=bytes(MIB + MIB // 2 + 1000))).kind == "too_large"
    assert failure(lambda: put(client, value=bytes(3 * MIB))).kind == "too_large"
    many = api.TxnRequest()
    for number in range(129):
        api.add_put(many.success, b"%d" % number, b"")
    assert failure(lambda: client.call(api.TXN, many, PATIENCE)).kind == "too_large"
    assert client.rotations == 0
    assert put(client)


def test_a_request_that_can_never_be_applied_is_refused(client: Cluster) -> None:
    twice = api.TxnRequest()
    api.add_put(twice.success, b"k", b"1")
    api.add_put(twice.success, b"k", b"2")
    error = failure(lambda: client.call(api.TXN, twice, PATIENCE))
    assert error.kind == "refused"
    assert "duplicate key" in str(error)


def test_answers_beyond_grpcs_four_mebibytes_are_taken(client: Cluster) -> None:
    prefix = fresh_prefix()
    for number in range(6):
        put(client, f"{prefix}/{number}".encode(), bytes(MIB))
    request = api.RangeRequest(key=f"{prefix}/".encode(), range_end=f"{prefix}0".encode())
    found = client.ask(api.RANGE, request, PATIENCE).kvs
    assert len(found) == 6
    watch = api.WatchRequest()
    watch.create_request.key = request.key
    watch.create_request.range_end = request.range_end
    watch.create_request.start_revision = found[0].mod_revision
    seen = 0
    with client.stream() as stream:
        stream.send(watch)
        while seen < 6:
            response = stream.next(PATIENCE)
            assert response is not None
            seen += len(response.events)


def test_a_put_with_a_lease_that_is_over_is_told_apart(client: Cluster) -> None:
    assert failure(lambda: put(client, lease=12345)).kind == "lease_gone"
    lease = client.ask(api.LEASE_GRANT, api.LeaseGrantRequest(TTL=600), PATIENCE).ID
    assert put(client, fresh_prefix().encode(), lease=lease)
    client.call(api.LEASE_REVOKE, api.LeaseRevokeRequest(ID=lease), PATIENCE)
    assert failure(lambda: put(client, lease=lease)).kind == "lease_gone"


def test_a_quota_that_is_used_up_is_a_full_store_for_writes_only(start_etcd: StartEtcd) -> None:
    etcd = start_etcd(flags=["--quota-backend-bytes", str(8 * MIB)], is_durable=False)
    with Cluster(parse_address(etcd.address())) as client:

        def fill() -> None:
            for number in range(100):
                put(client, b"%d" % number, bytes(MIB))

        assert failure(fill).kind == "full"
        assert failure(lambda: put(client)).kind == "full"
        assert client.ask(api.RANGE, api.RangeRequest(key=b"0"), PATIENCE).count == 1
        (alarm,) = client.ask(api.ALARM, api.AlarmRequest(), PATIENCE).alarms
        assert alarm.alarm == 1, "NOSPACE"
        assert client.rotations == 0


# ── certificates ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def strict(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates, etcd: EtcdCluster
) -> Iterator[EtcdCluster]:
    """A member that takes clients with certificates only."""
    folder = tmp_path_factory.mktemp("strict")
    with EtcdCluster(folder, certificates=certificates, is_mutual=True, is_durable=False) as found:
        yield found


def test_a_client_with_a_certificate_is_taken(strict: EtcdCluster) -> None:
    with Cluster(parse_address(strict.address())) as client:
        assert put(client)
        assert client.each(api.STATUS, api.StatusRequest(), PATIENCE)[client.endpoint].version


@pytest.mark.parametrize("prefix", ["ca", ""])
def test_a_client_without_a_certificate_sends_nothing(
    strict: EtcdCluster, certificates: Certificates, prefix: str
) -> None:
    """Neither one with TLS nor one that speaks in the clear."""
    address = f"etcd://{strict.endpoints[0]}/p" + (f"?ca={certificates.ca}" if prefix else "")
    with Cluster(parse_address(address)) as client:
        assert failure(lambda: client.call(api.TXN, api.TxnRequest(), PATIENCE)).is_of_member


def test_a_member_that_another_authority_speaks_for_is_not_believed(
    strict: EtcdCluster, tmp_path: Path
) -> None:
    other = make_certificates(tmp_path / "other")
    with Cluster(parse_address(strict.address(ca=other.ca))) as client:
        error = failure(lambda: put(client))
        assert error.kind == "not_sent"
        assert "CERTIFICATE_VERIFY_FAILED" in str(error)


def test_the_page_names_the_cause_of_what_is_said_of_tls(
    strict: EtcdCluster, etcd: EtcdCluster, certificates: Certificates, tmp_path: Path
) -> None:
    rows = table_rows((ROOT / "docs/cluster.md").read_text(), "When a daemon does not reach etcd")
    causes = dict(rows)
    other = make_certificates(tmp_path / "other")
    for address, cause in [
        (f"etcd://{strict.endpoints[0]}", "etcd wants TLS"),
        (f"etcd://{etcd.endpoints[0]}?ca={certificates.ca}", "speaks without TLS"),
        (strict.address(ca=other.ca), "another authority"),
        (strict.address(server_name="elsewhere"), "is not for the name"),
        (f"etcd://{strict.endpoints[0]}?ca={certificates.ca}", "wants a certificate of the daemon"),
        (f"etcd://127.0.0.1:{free_port()}", "no etcd listens there"),
    ]:
        with Cluster(parse_address(address)) as client:
            message = str(failure(lambda client=client: put(client)))  # type: ignore[misc]
        words = [
            word for said, row in causes.items() if cause in row for word in re.findall(r"`([^`]+)`", said)
        ]
        assert any(word in message for word in words), (cause, message)


def test_the_name_in_the_certificate_may_be_given(strict: EtcdCluster) -> None:
    with Cluster(parse_address(strict.address(server_name="localhost"))) as client:
        assert put(client)
    with Cluster(parse_address(strict.address(server_name="elsewhere"))) as client:
        assert failure(lambda: put(client)).kind == "not_sent"


def test_files_that_cannot_be_used_are_named_at_the_start(certificates: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    text = tmp_path / "text"
    text.write_text("no certificate")
    locked = tmp_path / "locked.key"
    openssl("rsa", "-in", rsa_key(tmp_path), "-aes128", "-passout", "pass:secret", "-out", locked)
    ca, cert, key = certificates.ca, certificates.client_cert, certificates.client_key
    for parameters, named in [
        (f"ca={tmp_path}/none", "none"),
        (f"ca={tmp_path}", str(tmp_path)),
        (f"ca={text}", "no certificate in PEM"),
        (f"ca={ca}&cert={tmp_path}/none&key={key}", "none"),
        (f"ca={ca}&cert={cert}&key={other.client_key}", str(other.client_key)),
        (f"ca={ca}&cert={text}&key={key}", str(text)),
        (f"ca={ca}&cert={cert}&key={locked}", "without passphrase"),
    ]:
        with pytest.raises(KvError, match="of --engine cannot be used") as caught:
            Cluster(parse_address(f"etcd://127.0.0.1:1?{parameters}"))
        assert named in caught.value.message
        assert caught.value.code == "bad_request"


def rsa_key(folder: Path) -> Path:
    file = folder / "rsa.key"
    openssl("genrsa", "-out", file, "2048")
    return file


# ── users ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[EtcdCluster]:
    """A member that knows the user ``kv``."""
    with EtcdCluster(tmp_path_factory.mktemp("guarded"), users=["kv"]) as found:
        yield found


def password_file(folder: Path, password: str = PASSWORD) -> Path:
    file = folder / "password"
    file.write_text(f"{password}\n")
    file.chmod(0o600)
    return file


def test_a_token_that_a_restart_has_lost_is_renewed_within_the_call(
    guarded: EtcdCluster, tmp_path: Path
) -> None:
    address = parse_address(guarded.address(user="kv", password_file=password_file(tmp_path)))
    with Cluster(address) as client:
        put(client)
        lost = client._token
        # not killed: it would read its log again, and the tokens in it
        guarded.members[0].restart()
        # one attempt: the connection must be there again, so that only the token is in the way
        client.ask(api.STATUS, api.StatusRequest(), PATIENCE)
        assert put(client)
        assert client._token != lost


def test_all_threads_share_a_token_and_its_renewal(guarded: EtcdCluster, tmp_path: Path) -> None:
    address = parse_address(guarded.address(user="kv", password_file=password_file(tmp_path)))
    with Cluster(address) as client:
        client._token = "of another life"  # noqa: S105
        errors: list[Exception] = []
        tokens: set[str | None] = set()
        together = threading.Barrier(8)

        def call() -> None:
            together.wait()
            try:
                put(client)
                tokens.add(client._token)
            except EtcdError as error:
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert len(tokens) == 1, "one thread has asked for it"


def test_a_stream_with_a_lost_token_ends_and_the_next_one_has_another(
    guarded: EtcdCluster, tmp_path: Path
) -> None:
    address = parse_address(guarded.address(user="kv", password_file=password_file(tmp_path)))
    watch = api.WatchRequest()
    watch.create_request.key = b"k"
    with Cluster(address) as client:
        client._token = "of another life"  # noqa: S105
        with client.stream() as stream:
            stream.send(watch)
            assert failure(lambda: stream.next(PATIENCE)).kind == "auth"
        with client.stream() as stream:
            stream.send(watch)
            response = stream.next(PATIENCE)
            assert response is not None
            assert response.created


def test_who_is_not_known_is_told_so(guarded: EtcdCluster, tmp_path: Path) -> None:
    with Cluster(parse_address(guarded.address())) as nobody:
        error = failure(lambda: put(nobody))
        assert error.kind == "auth"
        assert "user name is empty" in str(error)
    wrong = parse_address(guarded.address(user="kv", password_file=password_file(tmp_path, "wrong")))
    with Cluster(wrong) as client:
        assert failure(lambda: put(client)).kind == "auth"
        assert failure(client.stream).kind == "auth"
        assert client.rotations == 0
        password_file(tmp_path)
        assert put(client), "the file is read when a token is asked for"
        (tmp_path / "password").unlink()
        client._token = None
        assert failure(lambda: put(client)).kind == "auth"


def test_authentication_may_be_turned_on_while_we_run(start_etcd: StartEtcd, tmp_path: Path) -> None:
    etcd = start_etcd(users=[], flags=["--bcrypt-cost", "4"], is_durable=False)
    with Cluster(parse_address(etcd.address(user="root", password_file=password_file(tmp_path)))) as client:
        assert put(client), "a user that nobody asks for does no harm"
        etcd.etcdctl("user", "add", f"root:{PASSWORD}")
        etcd.etcdctl("user", "grant-role", "root", "root")
        etcd.etcdctl("auth", "enable")
        assert put(client)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_secret_is_refused_where_others_can_read_it(certificates: Certificates, tmp_path: Path) -> None:
    files = shutil.copytree(certificates.ca.parent, tmp_path / "files")
    ca, cert, key = (
        files / path.name for path in (certificates.ca, certificates.client_cert, certificates.client_key)
    )
    address = parse_address(f"etcd://127.0.0.1:1?ca={ca}&cert={cert}&key={key}")
    for owner, mode, refusal in [
        (0, 0o600, None),
        (0, 0o640, "chmod 600"),
        (0, 0o604, "chmod 600"),
        # a group may read another user's file, as systemd lets a service read its credentials
        (1, 0o440, None),
        (1, 0o644, "chmod 640"),
    ]:
        os.chown(key, owner, 0)
        key.chmod(mode)
        if refusal is None:
            Cluster(address).close()
            continue
        with pytest.raises(KvError, match=f"which holds a private key: {refusal} ") as refused:
            Cluster(address)
        assert refused.value.code == "not_allowed"


def test_a_password_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    file = password_file(tmp_path)
    address = parse_address(f"etcd://127.0.0.1:1?user=u&password-file={file}")
    Cluster(address).close()
    file.chmod(0o640)
    with pytest.raises(KvError, match="chmod 600"):
        Cluster(address)
    file.chmod(0o600)
    for text, why in [(b"", "no password"), (b"\nx", "no password"), (b"\xff", "UTF-8")]:
        file.write_bytes(text)
        with pytest.raises(KvError, match=why):
            Cluster(address)
    file.unlink()
    with pytest.raises(KvError, match="No such file"):
        Cluster(address)


# ── processes ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_what_forks_has_no_grpc_in_it() -> None:
    """gRPC's threads and locks do not survive a fork."""
    program = (
        "import sys\n"
        "import kvstore_cli.main, kvstore_cli.commands.servers, kvstore_http.main, kvstore_daemon.main\n"
        "sys.exit('grpc' in sys.modules or 'google.protobuf' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)


@pytest.mark.slow
def test_grpc_writes_nothing_to_the_log() -> None:
    """Neither where a connection fails nor where the process forks, at which it goes on."""
    program = (
        "import os, socket\n"
        "from kvstore_daemon.storage.etcd_store.connection import api\n"
        "from kvstore_daemon.storage.etcd_store.connection.address import parse_address\n"
        "from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError\n"
        "silent = socket.create_server(('127.0.0.1', 0))\n"
        "with Cluster(parse_address(f'etcd://127.0.0.1:{silent.getsockname()[1]},127.0.0.1:1')) as client:\n"
        "    with client.stream():\n"
        "        child = os.fork()\n"
        "        if not child: os._exit(0)\n"
        "        os.waitpid(child, 0)\n"
        "    for error in client.each(api.STATUS, api.StatusRequest(), 0.5).values(): print(error.kind)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert (done.stdout, done.stderr) == ("unknown\nnot_sent\n", "")
