"""The build hook that makes a compiled wheel: mypyc translates the modules named here into C.

Hatchling runs it only where ``HATCH_BUILD_HOOK_ENABLE_CUSTOM=1`` is set; without that the wheel is pure
Python, the same bytes every time, for every machine. A compiled wheel is for one version of Python on one
kind of machine. Each compiled module lies beside its source, which another version of Python takes.

It is our own because the plugin for this, hatch-mypyc, has had no release since February 2023, and
chooses files by patterns and builds by a script of its own; this is what is left without those.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = (
    "core/kvstore_core/model.py",
    "core/kvstore_core/operations.py",
    "core/kvstore_core/wire.py",
    "client/kvstore_client/transport/connection.py",
    "client/kvstore_client/transport/retry.py",
    "daemon/kvstore_daemon/event_loop.py",
    "daemon/kvstore_daemon/group_commit.py",
    "daemon/kvstore_daemon/peer_limits/peer.py",
    "daemon/kvstore_daemon/publisher.py",
    "daemon/kvstore_daemon/record_fields.py",
    "daemon/kvstore_daemon/requests/authors.py",
    "daemon/kvstore_daemon/requests/fair_queue.py",
    "daemon/kvstore_daemon/requests/handler.py",
    "daemon/kvstore_daemon/requests/lone_get.py",
    "daemon/kvstore_daemon/requests/pending_request.py",
    "daemon/kvstore_daemon/requests/permission.py",
    "daemon/kvstore_daemon/requests/reads.py",
    "daemon/kvstore_daemon/requests/router_socket.py",
    "daemon/kvstore_daemon/requests/writes.py",
    "daemon/kvstore_daemon/storage/applier.py",
    "daemon/kvstore_daemon/storage/commit_stats.py",
    "daemon/kvstore_daemon/storage/interface.py",
    "daemon/kvstore_daemon/storage/write_rules.py",
    "daemon/kvstore_daemon/storage/lmdb_store/idempotency.py",
    "daemon/kvstore_daemon/storage/lmdb_store/journaling/layered.py",
    "daemon/kvstore_daemon/storage/lmdb_store/journaling/overlay.py",
    "daemon/kvstore_daemon/storage/lmdb_store/row_format.py",
    "daemon/kvstore_daemon/storage/lmdb_store/write_transaction.py",
)
"""What a request passes through. Not among them: what gets slower (``snapshot_reads``); what is run by its
name, which Python does not do with a compiled module; classes from which a module that is not compiled, or a
test, derives one, which Python refuses; and whatever is not on that path."""

GROUP = "kvstore"
"""All compiled modules are one shared library, ``kvstore__mypyc``, so that they call each other directly."""


class CompileHook(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; the wheel is then one of this Python and this machine."""
        if version == "editable":  # compiled files would hide what is edited
            return
        self._folder = tempfile.TemporaryDirectory(prefix="kvstore-compile-")
        folder = Path(self._folder.name)
        build(translate(Path(self.root), folder / "c"), folder)
        built = folder / "lib"
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for file in built.rglob("*.so"):
            build_data["force_include"][str(file)] = str(file.relative_to(built))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was built, which is in the wheel now."""
        if version != "editable":
            self._folder.cleanup()


def translate(root: Path, folder: Path) -> list[Any]:
    """Write the modules as C into ``folder``; returns setuptools' extensions. Ends the process where mypy or
    mypyc finds an error."""
    from mypyc.build import mypycify

    # without our strict options, so that what a newer mypy would have us write otherwise fails no build
    options = ["--config-file=", f"--cache-dir={os.devnull}", "--ignore-missing-imports"]
    files = [str(root / module) for module in MODULES]
    level = os.environ.get("MYPYC_OPT_LEVEL", "3")
    extensions: list[Any] = mypycify(
        [*options, *files], group_name=GROUP, target_dir=str(folder), opt_level=level, debug_level="0"
    )
    return extensions


def build(extensions: list[Any], folder: Path) -> None:
    """Compile the C into ``lib`` in ``folder``."""
    from setuptools import Distribution

    command = Distribution({"name": GROUP, "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "objects")
    command.ensure_finalized()
    command.run()
