"""``kvstore edit``."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from difflib import unified_diff
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.subcommand import client_of, subcommand
from kvstore_cli.command_line.writes import condition_headers, message_headers, print_revision, stored
from kvstore_cli.http_client.client import ServiceClient, key_path
from kvstore_cli.terminal import output
from kvstore_core.errors import KvError

_SUFFIXES = {"json": ".json", "html": ".html", "markdown": ".md", "yaml": ".yaml", "xml": ".xml"}
"""What editors choose their colours by, for the last word of a media type."""


@subcommand("client")
@parameters.key_argument
@parameters.message_option
@parameters.json_option("Print key, revision and version as JSON.")
def command(context: click.Context, key: str, message: str | None, as_json: bool) -> None:
    """Open the value of KEY in an editor, store what is saved, and print the new revision. A key that does
    not exist is created.

    The editor is that of VISUAL or EDITOR, else vi. TTL and media type stay. A newline at the end that
    the value did not have, and that most editors add, is left out. A value that was JSON has to be JSON.

    It is stored only if nobody has changed the key meanwhile. Where somebody has, or where it cannot be
    stored, what was typed is kept in a file, whose name is printed.

    Exit status: 0, also if nothing was changed; 1 if the editor fails or JSON is not; 4 if the key has
    changed meanwhile.

    \b
    Examples:
      kvstore edit config/app.json
      EDITOR='code --wait' kvstore edit notes -m 'shorter'
    """
    with client_of(context) as service:
        before = _record(service, key)
        old = b"" if before is None else output.value_of(before)
        _refuse_binary(key, old)
        content_type = None if before is None else str(before["content_type"])
        file = _file_for(key, content_type or "", old)
        try:
            _run_editor(file)
            new = _saved(file, old)
            if new == old:
                output.talk("nothing was changed")
                rmtree(file.parent)
                return
            _check_json(content_type or "", old, new)
            headers = condition_headers(0 if before is None else before["revision"])
            query = [] if before is None else [("keep_ttl", "1")]
            made = stored(service, key, new, content_type, query, headers | message_headers(message))
        except (KvError, click.ClickException) as error:
            raise _kept(error, file, old, lambda: _difference(service, key, file)) from error
        rmtree(file.parent)
    print_revision(made, as_json=as_json)


def _record(service: ServiceClient, key: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = service.request("GET", key_path("kv", key), [("format", "json")]).json()
    except KvError as error:
        if error.code != "not_found":
            raise
        return None
    return record


def _refuse_binary(key: str, value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        name = output.readable(key)
        raise click.ClickException(
            f"the value of '{name}' is not text, and an editor would damage it; use a file: "
            f"kvstore get --raw '{name}' > FILE, and kvstore put '{name}' @FILE"
        ) from error


def _file_for(key: str, content_type: str, value: bytes) -> Path:
    """A new file with the value, in a folder of its own that only this user can read."""
    last = "".join(char if char.isalnum() or char in "._-" else "_" for char in key.rpartition("/")[2])
    suffix = _SUFFIXES.get(_kind(content_type), "")
    name = f"{last.lstrip('.-')[:100] or 'value'}"
    file = Path(mkdtemp(prefix="kvstore-edit-")) / (name if name.endswith(suffix) else name + suffix)
    file.write_bytes(value)
    return file


def _kind(content_type: str) -> str:
    """The last word of a media type: that of application/problem+json is json (RFC 6839)."""
    return re.split("[/+]", content_type.partition(";")[0].strip().lower())[-1].removeprefix("x-")


def _run_editor(file: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    # by a shell, since the variable may have arguments, as with git and crontab
    status = subprocess.run(["/bin/sh", "-c", f'{editor} "$@"', editor, file], check=False).returncode  # noqa: S603
    if status != 0:
        raise click.ClickException(
            f"the editor '{output.readable(editor)}' ended with status {status}; "
            "VISUAL or EDITOR names another"
        )


def _saved(file: Path, old: bytes) -> bytes:
    try:
        new = file.read_bytes()
    except OSError as error:
        raise click.ClickException(f"the editor has left no {file}") from error
    if new.endswith(b"\n") and not old.endswith(b"\n"):
        return new.removesuffix(b"\n").removesuffix(b"\r")
    return new


def _check_json(content_type: str, old: bytes, new: bytes) -> None:
    """A click error if ``new`` is not JSON, where the type says so and ``old`` was."""
    if _kind(content_type) != "json":
        return
    try:
        json.loads(old)
    except ValueError:
        return
    try:
        json.loads(new)
    except ValueError as error:
        raise click.ClickException(f"it is not JSON any more: {error}; nothing was stored") from error


def _kept(
    error: KvError | click.ClickException, file: Path, old: bytes, difference: Callable[[], str]
) -> KvError | click.ClickException:
    """The error, with where to find what was typed; nothing is kept if nothing was."""
    if not file.exists() or file.read_bytes() == old:
        rmtree(file.parent, ignore_errors=True)
        return error
    kept = f"what you typed is in {file}"
    if isinstance(error, click.ClickException):
        return click.ClickException(f"{error.message}; {kept}")
    if error.code == "condition_failed":
        with suppress(KvError):  # the service may be away by now; the file's name matters more
            output.err(difference())
    return KvError(error.code, f"{error.message}; {kept}", **error.details)


def _difference(service: ServiceClient, key: str, file: Path) -> str:
    """From what is stored by now to what was typed, as ``diff -u`` has it."""
    now = _record(service, key)
    stored_lines = [] if now is None else output.value_of(now).decode(errors="replace").splitlines()
    typed = file.read_text(errors="replace").splitlines()
    at = "there is no such key" if now is None else f"revision {now['revision']}"
    lines = unified_diff(stored_lines, typed, f"stored ({at})", "typed", lineterm="")
    return "".join(f"{output.visible(line)}\n" for line in lines)
