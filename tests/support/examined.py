"""What ``kvstore doctor`` says of a service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from support.servers import clean_environment, kvstore_command
from support.warm import warm_command

RUN_SECONDS = 50

# How fast things are depends on what else runs on the machine, and is nothing that these tests promise.
SPEED = {"slow_disk", "slow_writes", "slow_events"}


class Examined(NamedTuple):
    """What ``kvstore doctor`` said."""

    exit: int
    checks: list[dict[str, Any]]

    @property
    def causes(self) -> set[str]:
        """What it found wrong, and of headers and methods which."""
        found = set()
        for check in self.checks:
            figures = check.get("figures", {})
            detail = figures.get("header") or figures.get("method")
            if check.get("cause") not in (None, *SPEED):
                found.add(check["cause"] + (f" {detail}" if detail else ""))
        return found


def examine(url: str, folder: Path, *flags: str) -> Examined:
    """Run ``kvstore doctor --json``, without the listening to silence unless flags are given."""
    done = warm_command(*kvstore_command()).run(
        ["doctor", "--json", "--url", url, *(flags or ["--quick"])],
        stdin=b"",
        env=clean_environment(folder),
        cwd=folder,
        timeout=RUN_SECONDS,
    )
    assert done.stdout, done.stderr.decode()
    return Examined(done.returncode, json.loads(done.stdout)["checks"])
