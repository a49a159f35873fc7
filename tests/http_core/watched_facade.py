"""``kvstore`` as it is, but for the facade's short path: run as a process.

    python watched_facade.py long|short KVSTORE ARGUMENTS...

``long`` takes it away, so that all requests go through the parser and the application. ``short`` has it, and
leaves a byte for each request that takes it in the file ``short`` in the folder where it runs.
"""

import sys
from pathlib import Path
from typing import Any

from kvstore_cli.main import main
from kvstore_http.server.short_path import ShortPath
from kvstore_http.workers import worker

begin = ShortPath.begin


def noted(path: ShortPath, channel: Any, data: bytes) -> Any:
    """As the short path does, and leave a byte."""
    request = begin(path, channel, data)
    if request is not None:
        with Path("short").open("ab") as file:
            file.write(b".")
    return request


if __name__ == "__main__":
    _, way, *sys.argv = sys.argv
    if way == "long":
        worker.short_path = lambda *_: None  # type: ignore[assignment]
    else:
        ShortPath.begin = noted  # type: ignore[method-assign]
    sys.exit(main())
