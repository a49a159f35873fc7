"""A process of ``kvstore serve``: ``python -m kvstore_cli.serve.child NAME SETTINGS PARENT NOTICES``.

The settings come as JSON from the parent, which has checked them: a child that is restarted days later
must not find other ones because a file was edited meanwhile. NOTICES is the descriptor of the socket on
which the child tells its parent that it is ready and that it works.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from kvstore_core.process.sd_notify import Notifier

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the daemon or the facade; returns its exit status."""
    name, settings, parent, notices = arguments
    die_with(int(parent))
    os.set_inheritable(int(notices), False)
    return run(name, json.loads(settings), Notifier(descriptor=int(notices), is_watched=True))


def run(name: str, fields: dict[str, Any], parent: Notifier) -> int:
    """Run what is called ``name`` with the settings in ``fields``; it reports to ``parent``, which alone
    speaks to a service manager."""
    from kvstore_cli.serve.logging_setup import set_up

    set_up(name, fields["log_level"], fields["log_format"])
    if name == "daemon":
        from kvstore_daemon.main import run as run_daemon
        from kvstore_daemon.settings import DaemonSettings

        return run_daemon(DaemonSettings(**fields), parent)
    from kvstore_http.main import run as run_http
    from kvstore_http.settings import HttpSettings

    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return run_http(HttpSettings(**{**fields, **lists}), parent)


def die_with(parent: int) -> None:
    """Have the kernel send this process a SIGTERM when ``parent`` ends, however it ends.

    Only Linux can do that; elsewhere a SIGKILL of the parent leaves its children running.
    """
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # a parent that ended before that was asked for sends nothing
    if os.getppid() != parent:
        sys.exit(f"kvstore {sys.argv[1]}: the process that started it is gone")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
