"""Programs of the distribution that some tests run; ``tools/needs`` installs them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import NoReturn, Self

import pytest

from support.patience import PATIENCE_SECONDS
from support.servers import dies_with_us, free_port, wait_until

# Where Debian keeps servers; not everybody looks there.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def require_program(*names: str) -> str:
    """The path of the first of ``names`` that is installed. Where none is, the test is skipped, but
    under CI (``CI=true``) it fails: there the programs have to be."""
    found = [path for name in names if (path := shutil.which(name, path=_PATH))]
    if not found:
        skip_but_in_ci(f"{names[0]} is not installed; 'make test' installs it, or: tools/needs {names[0]}")
    return found[0]


def skip_but_in_ci(missing: str) -> NoReturn:
    """Skip the test for what is ``missing`` on this machine; under CI (``CI=true``) fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


class Program:
    """A server in the foreground with a configuration in which ``{folder}`` is a folder to write to and
    ``{port}`` the port to listen on. It is stopped by SIGTERM."""

    name: str
    stopped_statuses: tuple[int, ...] = (0,)

    def __init__(self, folder: Path, configuration: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._program = require_program(self.name)
        self._process: subprocess.Popen[bytes]
        self.file = folder / f"{self.name}.conf"
        self.file.write_text(configuration.replace("{folder}", str(folder)).replace("{port}", str(self.port)))

    def arguments(self) -> list[str]:
        """What the program is started with."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        with (self.folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                # not killed, which would leave nginx's workers behind
                dies_with_us([self._program, *self.arguments()], by="TERM"),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        try:
            wait_until(self._is_ready, what=f"{self.name} is ready")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(PATIENCE_SECONDS) in self.stopped_statuses, self.said

    @property
    def said(self) -> str:
        """What it wrote on stderr."""
        return (self.folder / "stderr").read_text()

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self.said
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


# What Debian's build would put under /var, where only root may write.
_NGINX = """\
{user}
daemon off;
pid {folder}/nginx.pid;
worker_processes 1;
error_log stderr info;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}
"""


PLAIN = "server { listen 127.0.0.1:{port}; location / { proxy_pass http://{service}; } }"
"""nginx with what it needs to pass requests on, and nothing more."""


class Nginx(Program):
    """nginx, with the given text in its ``http`` block."""

    name = "nginx"

    def __init__(self, folder: Path, http: str) -> None:
        # Started as root it would give up that right, and with it the way to the test's folder.
        user = "user root;" if os.geteuid() == 0 else ""
        super().__init__(folder, _NGINX.replace("{user}", user).replace("{http}", http))

    def arguments(self) -> list[str]:
        return ["-p", str(self.folder), "-e", "stderr", "-c", str(self.file)]

    def check(self) -> str:
        """What ``nginx -t`` says of the configuration; the test fails if it is refused."""
        command = [self._program, *self.arguments(), "-t"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr


class HaProxy(Program):
    """HAProxy, with the given text as its whole configuration."""

    name = "haproxy"
    stopped_statuses = (0, 128 + signal.SIGTERM, -signal.SIGTERM)

    def arguments(self) -> list[str]:
        return ["-db", "-f", str(self.file)]


def make_certificate(folder: Path, *, days: int = 30, names: str = "DNS:localhost,IP:127.0.0.1") -> Path:
    """A certificate for localhost and 127.0.0.1, or for other ``names``, with its key, in one file. It ends
    in so many ``days``; if they are negative, it has ended."""
    file, key, request = (folder / name for name in ("certificate.pem", "key.pem", "request.pem"))
    options = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        f"/CN=localhost/OU={folder.name}",
    ]
    openssl("req", *options, "-addext", f"subjectAltName={names}", "-keyout", key, "-out", request)
    signed = ["-signkey", key, "-days", str(days), "-copy_extensions", "copy", "-out", file]
    openssl("x509", "-req", "-in", request, *signed)
    file.write_text(file.read_text() + key.read_text())
    return file


def openssl(*arguments: str | Path, stdin: bytes = b"") -> str:
    """What ``openssl`` prints; it has to succeed."""
    command = [require_program("openssl"), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def install_examples(folder: Path) -> str:
    """Copy the examples into the empty ``folder``, install the package that those for Node need there, and
    return the path of node."""
    node, npm = require_program("node"), require_program("npm")
    examples = Path(__file__).parents[2] / "examples"
    shutil.copytree(examples, folder, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    # the package brings its binaries along, no script has to build any
    install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=300)
    return node
