"""Write etcd.fds anew: etcd's API, as the descriptors from which its messages are made at run time.

    python tools/etcd_api.py FOLDER      where FOLDER has a checkout of etcd, for instance of v3.7.1

The Python that runs it needs grpcio-tools (``pip install grpcio-tools`` into an environment of its own).
The output is committed, so nobody who builds, tests or runs kvstore needs it. What is changed of etcd's
files is said in LICENSE.etcd, as their licence asks: keep it true.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOM = Path(__file__).parents[1] / "daemon" / "kvstore_daemon" / "storage" / "etcd_store" / "connection"
FILES = ("mvccpb/kv.proto", "authpb/auth.proto", "etcdserverpb/rpc.proto")
PREFIX = "kvstore/"
"""Before the names of the files, which other programs' descriptors have too."""

FOREIGN = r'import "(?!etcd/api/(?:mvccpb|authpb)/)[^"]*";\n'
FIELD_OPTIONS = r" *\[\([^\]]*\]"
BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\}"
OPTION = rf'option \([\w.]+\) = (?:"[^"]*"|{BRACES});'


def stripped(text: str) -> str:
    """A file of etcd without what is for its gateway, its documentation and its own checks of versions."""
    for pattern in (FOREIGN, FIELD_OPTIONS, OPTION):
        text = re.sub(pattern, "", text)
    return text


def compiled(api: Path) -> FileDescriptorSet:
    """The descriptors of :data:`FILES`."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            file = Path(folder, "etcd/api", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(stripped((api / name).read_text()))
        protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--descriptor_set_out=out"]
        subprocess.run([*protoc, *(f"etcd/api/{name}" for name in FILES)], cwd=folder, check=True)
        return FileDescriptorSet.FromString(Path(folder, "out").read_bytes())


def main() -> None:
    """Compile, and give the files names of their own."""
    descriptors = compiled(Path(sys.argv[1], "api"))
    for file in descriptors.file:
        file.name = PREFIX + file.name
        file.dependency[:] = [PREFIX + name for name in file.dependency]
        file.ClearField("options")
    (ROOM / "etcd.fds").write_bytes(descriptors.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
