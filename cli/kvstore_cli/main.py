"""The ``kvstore`` command: runs the command line, and turns errors into a message and an exit status.

``kvstore get KEY`` takes as long as what it imports. So nothing is imported here that some lines can do
without, and the usual ones are run without click.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_ERROR, EXIT_USAGE, KvError


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        return _run()
    except KeyboardInterrupt:
        output.end_line()
        return output.EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of standard output is gone
        output.drop()
        return EXIT_ERROR
    except Exception as error:
        known = _known(error)
        if known is None:
            raise
        message, status = known
        output.talk(message)
        return status


def _run() -> int:
    if output.COMPLETE_VARIABLE not in os.environ:
        with _uncollected():
            from kvstore_cli.command_line.short import understood

            line = understood(sys.argv[1:])
            if line is not None:
                return line()
    from kvstore_cli.command_line.group import run

    return run()


@contextmanager
def _uncollected() -> Iterator[None]:
    # there is little garbage so soon, and looking for it takes a sixth of the time, at the exit too
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _known(error: Exception) -> tuple[str, int] | None:
    """What is said of an error, and the exit status; None for one that is a fault of ours."""
    from kvstore_cli.config.resolve import ConfigurationError

    if isinstance(error, ConfigurationError):
        return str(error), EXIT_USAGE
    if isinstance(error, output.OutputError):
        return error.message, EXIT_ERROR
    if isinstance(error, KvError):
        return _with_request_id(error), error.row.exit
    if isinstance(error, ModuleNotFoundError):
        return _missing(error.name or "")
    if isinstance(error, OSError):
        from kvstore_core.process.files import reason

        return ": ".join(filter(None, (error.filename, reason(error)))), EXIT_ERROR
    return None


def _missing(module: str) -> tuple[str, int] | None:
    from kvstore_core.distribution import extra_of, how_to_install

    extra = extra_of(module)
    if extra is None:
        return None
    more = f" for the command, {how_to_install('server')} for the service too" if extra == "cli" else ""
    return f"{module} is not installed: {how_to_install(extra)}{more}", EXIT_ERROR


def _with_request_id(error: KvError) -> str:
    """The message; for an error of the service, with the request id to look for in its log."""
    request_id = error.details.get("request_id")
    return (
        f"{error.message} (request {request_id})" if request_id and error.row.status >= 500 else error.message
    )


if __name__ == "__main__":
    sys.exit(main())
