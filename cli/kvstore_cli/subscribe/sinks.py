"""Where the events of ``kvstore subscribe`` go: to stdout, or to a command of the user's."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import click

from kvstore_cli.command_line.line_format import LineFormat
from kvstore_cli.http_client.change_stream import RESET, SYNC
from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_DONE, EXIT_ERROR

VARIABLES = {
    "op": "`put`, `delete` or `expire`; with `--exec-marks` also `reset` or `sync`",
    "key": "the key",
    "revision": "the revision of the change",
    "index": "the index of the event among those of its revision, from 0",
    "count": "how many events share the revision",
    "time": "when it happened, as RFC 3339 in UTC",
    "content_type": "the value's media type (put)",
    "version": "how often the key was put since it was created (put)",
    "create_revision": "the revision that created the key (put)",
    "modified_at": "when the value was put (put)",
    "expires_at": "when the key will expire (put with a TTL)",
    "previous_revision": "the revision that the key had before, 0 if there was no such key",
    "author": "who made the change, where that is known",
    "message": "why it was made, where that was said",
    "skipped": "how many changes of the key were left out before it (`--deliver latest`, `--sample`)",
    "cursor": "the position after the event (last event of a revision)",
    "reason": "why all that came before is void: `expired`, `epoch` or `reconnected` (reset)",
}
"""The members of an event that a command gets as ``KVSTORE_EVENT_*``, and what each holds."""


_PREFIX = b"KVSTORE_EVENT_"


class Sink(ABC):
    """Where the lines of a stream go. ``status`` is the exit status."""

    status = EXIT_DONE

    @abstractmethod
    def event(self, line: dict[str, Any]) -> None:
        """Deliver a put, a delete or an expire."""

    def mark(self, line: dict[str, Any]) -> None:
        """Handle a sync or a reset: report a reset on standard error."""
        if line["event"] == RESET:
            output.talk(f"starting over with a snapshot ({line['reason']}): everything before it is void")


class TextSink(Sink):
    """A line for each event, for a person or a simple script."""

    def event(self, line: dict[str, Any]) -> None:
        """Print op, key, revision and, for a put, the value."""
        cells = [output.coloured(line["op"], line["op"]), output.visible(line["key"]), str(line["revision"])]
        if "value" in line or "value_b64" in line:
            width = 60 if output.on_terminal() else None
            cells.append(output.preview(output.value_of(line), line["content_type"], width))
        output.write_line("\t".join(cells))


class JsonSink(Sink):
    """The service's own JSON objects, one a line; with a line for each sync if ``with_sync``."""

    def __init__(self, *, with_sync: bool) -> None:
        self._marks = (SYNC, RESET) if with_sync else (RESET,)

    def event(self, line: dict[str, Any]) -> None:
        """Print the event."""
        output.write_json(line)

    def mark(self, line: dict[str, Any]) -> None:
        """Print a reset, and a sync if wanted."""
        if line["event"] in self._marks:
            output.write_json(line)


class FormatSink(Sink):
    """Each event as a template has it."""

    def __init__(self, line_format: LineFormat) -> None:
        self._line_format = line_format

    def event(self, line: dict[str, Any]) -> None:
        """Print the event."""
        self._line_format.write(line)


class ExecSink(Sink):
    """A command for each event, one at a time, with the event in its environment and the value on
    its standard input. ``status`` is 1 once a command failed.

    With ``marks`` it runs also for a reset, and for a sync that completes a snapshot, which follows a reset
    and, if it ``begins_with_snapshot``, comes first: not for one that completes a catch-up, behind which a
    command must not take for gone what it has not seen.
    """

    def __init__(self, command: str, *, fail_fast: bool, marks: bool, begins_with_snapshot: bool) -> None:
        self._command = command
        self._fail_fast = fail_fast
        self._marks = marks
        self._in_snapshot = begins_with_snapshot

    def event(self, line: dict[str, Any]) -> None:
        """Run the command and wait for it."""
        # an expired key has no new value: pass its last one
        value = output.value_of(line.get("previous", {}) if line["op"] == "expire" else line)
        self._run(line, value, f"{line['op']} {line['key']!r} at revision {line['revision']}")

    def mark(self, line: dict[str, Any]) -> None:
        """Report a reset, and run the command if that is wanted."""
        super().mark(line)
        kind = line["event"]
        if self._marks and (kind == RESET or self._in_snapshot):
            self._run({**line, "op": kind}, b"", f"the {kind}")
        self._in_snapshot = kind == RESET

    def _run(self, line: dict[str, Any], value: bytes, what: str) -> None:
        from kvstore_cli.subscribe.handler_process import run

        status = run(self._command, value, _environment(line))
        if status != 0:
            self._failed(what, f"signal {-status}" if status < 0 else f"status {status}")

    def _failed(self, what: str, how: str) -> None:
        self.status = EXIT_ERROR
        what = f"the command for {what} failed with {how}"
        if self._fail_fast:
            raise click.ClickException(f"{what}; stopping there")
        output.talk(what)


def _environment(line: dict[str, Any]) -> dict[bytes, bytes]:
    # in bytes: a key is UTF-8 whatever the locale's encoding is
    given = {name: line[name] for name in VARIABLES if name in line}
    variables = {_PREFIX + name.upper().encode(): str(value).encode() for name, value in given.items()}
    # this may run in the command of another one, whose event is not ours
    inherited = {name: value for name, value in os.environb.items() if not name.startswith(_PREFIX)}
    return {**inherited, **variables}
