"""Where the events of ``kvstore subscribe`` go: to stdout, or to a command of the user's."""

from __future__ import annotations

import os
from typing import Any, Protocol, Self

import click

from kvstore_cli.http_client.change_stream import RESET, SYNC
from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_DONE, EXIT_ERROR
from kvstore_core.process.files import reason

VARIABLES = (
    "op",
    "key",
    "revision",
    "index",
    "count",
    "time",
    "content_type",
    "version",
    "create_revision",
    "modified_at",
    "expires_at",
    "previous_revision",
    "cursor",
)


class Sink(Protocol):
    """Where the lines of a stream go. ``status`` is the exit status."""

    status: int

    def event(self, line: dict[str, Any]) -> None:
        """Deliver a put, a delete or an expire."""

    def mark(self, line: dict[str, Any]) -> None:
        """Handle a sync or a reset."""


class TextSink:
    """A line for each event, for a person or a simple script."""

    status = EXIT_DONE

    def event(self, line: dict[str, Any]) -> None:
        """Print op, key, revision and, for a put, the value."""
        cells = [output.coloured(line["op"], line["op"]), output.visible(line["key"]), str(line["revision"])]
        if "value" in line or "value_b64" in line:
            width = 60 if output.on_terminal() else None
            cells.append(output.preview(output.value_of(line), line["content_type"], width))
        output.write_line("\t".join(cells))

    def mark(self, line: dict[str, Any]) -> None:
        """Report a reset on standard error."""
        if line["event"] == RESET:
            output.talk(f"starting over with a snapshot ({line['reason']}): everything before it is void")


class JsonSink:
    """The service's own JSON objects, one a line; with a line for each sync if ``with_sync``."""

    status = EXIT_DONE

    def __init__(self, *, with_sync: bool) -> None:
        self._marks = (SYNC, RESET) if with_sync else (RESET,)

    def event(self, line: dict[str, Any]) -> None:
        """Print the event."""
        output.write_json(line)

    def mark(self, line: dict[str, Any]) -> None:
        """Print a reset, and a sync if wanted."""
        if line["event"] in self._marks:
            output.write_json(line)


class ExecSink:
    """A command for each event, one at a time, with the event in its environment and the value on
    its standard input. ``status`` is 1 once a command failed."""

    def __init__(self, command: str, *, fail_fast: bool) -> None:
        self._command = command
        self._fail_fast = fail_fast
        self.status = EXIT_DONE

    def event(self, line: dict[str, Any]) -> None:
        """Run the command and wait for it."""
        from kvstore_cli.subscribe.handler_process import run

        # an expired key has no new value: pass its last one
        value = output.value_of(line.get("previous", {}) if line["op"] == "expire" else line)
        status = run(self._command, value, _environment(line))
        if status != 0:
            self._failed(line, f"signal {-status}" if status < 0 else f"status {status}")

    def _failed(self, line: dict[str, Any], how: str) -> None:
        self.status = EXIT_ERROR
        what = (
            f"the command for {line['op']} {line['key']!r} at revision {line['revision']} failed with {how}"
        )
        if self._fail_fast:
            raise click.ClickException(f"{what}; stopping there")
        output.talk(what)

    def mark(self, line: dict[str, Any]) -> None:
        """Report a reset, which has no command."""
        TextSink().mark(line)


def _environment(line: dict[str, Any]) -> dict[bytes, bytes]:
    # in bytes: a key is UTF-8 whatever the locale's encoding is
    given = {name: line[name] for name in VARIABLES if name in line}
    variables = {
        f"KVSTORE_EVENT_{name.upper()}".encode(): str(value).encode() for name, value in given.items()
    }
    return {**os.environb, **variables}


def is_position(text: str) -> bool:
    """Whether ``text`` looks like a cursor or a revision."""
    import re

    return re.fullmatch(r"[0-9]{1,19}(?:-[0-9a-f]+)?", text) is not None


class CursorFile:
    """The file of ``--cursor``. Use it in a ``with``."""

    def __init__(self, path: str) -> None:
        """Raises a usage error for a file that cannot be written, before the first event."""
        from kvstore_cli.files.position_file import PositionFile

        self._name = output.readable(path)
        try:
            self._file = PositionFile(path)
        except OSError as error:
            raise click.UsageError(f"cannot write the cursor to {self._name}: {reason(error)}") from error

    def read(self) -> str | None:
        """The position in the file, None if it is empty; a usage error if it holds anything else."""
        try:
            cursor = self._file.read()
        except (OSError, UnicodeDecodeError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            raise click.UsageError(f"cannot read the cursor in {self._name}: {why}") from error
        if cursor and not is_position(cursor):
            raise click.UsageError(f"{self._name} does not contain a cursor; remove it to start over")
        return cursor or None

    def write(self, cursor: str) -> None:
        """Write ``cursor``. After a crash of the machine an older one may be there, and events repeat."""
        try:
            self._file.write(cursor)
        except OSError as error:
            raise click.ClickException(f"cannot write the cursor to {self._name}: {reason(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
