"""``kvstore batch``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from kvstore_cli.command_line.parameters import file_argument, message_option
from kvstore_cli.command_line.subcommand import client_of, subcommand
from kvstore_cli.command_line.writes import message_headers
from kvstore_cli.files.input_file import read_batch
from kvstore_cli.http_client.batch import run_ops
from kvstore_cli.http_client.errors import problem_error
from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_DONE


@subcommand("client")
@file_argument
@click.option("--atomic", is_flag=True, help="All or nothing, in one revision; each key at most once.")
@message_option
def command(context: click.Context, file: str, atomic: bool, message: str | None) -> int:
    """Run the operations in FILE (- is standard input), and print the result of each as JSON, one a
    line, in the same order.

    FILE has one JSON object a line, or is one JSON document: a list of operations, or
    {"atomic": true, "ops": [...]}.

    \b
    An operation is
      {"op": "put", "key": K, "value": TEXT}    also value_b64, content_type, ttl, sequence
      {"op": "get", "key": K}
      {"op": "delete", "key": K}
      {"op": "delete_prefix", "prefix": P}
      {"op": "incr", "key": K, "by": N}
      {"op": "touch", "key": K, "ttl": SECONDS}
      {"op": "persist", "key": K}
      {"op": "check", "key": K, "if_revision": REV}    or "if_value": TEXT, or "exists": true

    Each that names a KEY and changes it may have one of if_revision, if_value and if_value_b64. A check
    changes nothing; with --atomic one that does not hold is the end of all.

    Each that writes may have a "message", which says why; the others get that of --message.

    Without --atomic each operation succeeds or fails on its own, and a large file is sent in parts.

    Exit status: 0, or that of the first operation that failed.

    \b
    Examples:
      kvstore batch changes.ndjson
      jq -c '.[] | {op: "put", key: .id, value: .name}' users.json | kvstore batch -
      echo '[{"op": "check", "key": "a", "if_value": "1"}, {"op": "delete", "key": "b"}]' |
        kvstore batch - --atomic
    """
    ops, says_atomic = _parse(read_batch(file))
    with client_of(context) as service:
        return _print_results(run_ops(service, ops, message_headers(message), atomic=atomic or says_atomic))


def _parse(text: bytes) -> tuple[list[Any], bool]:
    """The operations, and whether the document asks for an atomic batch; a usage error if it is not JSON.
    The service checks the operations."""
    try:
        document = json.loads(text)
    except ValueError:
        return [
            _parse_line(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()
        ], False
    if isinstance(document, dict) and "ops" in document:
        unknown = document.keys() - {"ops", "atomic"}
        if unknown:
            raise click.UsageError(f"unknown members: {', '.join(sorted(unknown))}; known: ops, atomic")
        return document["ops"], document.get("atomic") is True
    return (document, False) if isinstance(document, list) else ([document], False)


def _parse_line(number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise click.UsageError(f"line {number} is not JSON: {error}") from error


def _print_results(results: Iterator[dict[str, Any]]) -> int:
    status, succeeded, failed = EXIT_DONE, 0, 0
    for result in results:
        output.write_json(result)
        if "error" in result:
            failed += 1
            status = status or problem_error(result["error"]).row.exit
        else:
            succeeded += 1
    output.talk(f"{succeeded} succeeded, {failed} failed")
    return status
