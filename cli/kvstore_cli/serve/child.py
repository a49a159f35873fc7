"""A process of ``kvstore serve``: ``python -m kvstore_cli.serve.child NAME SETTINGS PARENT NOTICES``.

The settings come as JSON from the parent, which has checked them: a child that is restarted days later
must not find other ones because a file was edited meanwhile. NOTICES is the descriptor on which the child
reports to its parent.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from kvstore_cli.serve.logging_setup import set_up
from kvstore_core.process.linux import end_with_parent
from kvstore_core.process.sd_notify import Notifier


def main(arguments: list[str]) -> int:
    """Run the daemon or the facade; returns its exit status."""
    name, settings, parent, notices = arguments
    if not end_with_parent(int(parent)):
        sys.exit(f"kvstore {name}: the process that started it is gone")
    os.set_inheritable(int(notices), False)
    notifier = Notifier(descriptor=int(notices), is_watched=True)
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(settings).items()
    }
    set_up(name, fields["log_level"], fields["log_format"])
    if name == "daemon":
        from kvstore_daemon.main import run as run_daemon
        from kvstore_daemon.settings import DaemonSettings

        return run_daemon(DaemonSettings(**fields), notifier)
    from kvstore_http.main import run as run_http
    from kvstore_http.settings import HttpSettings

    return run_http(HttpSettings(**fields), notifier)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
