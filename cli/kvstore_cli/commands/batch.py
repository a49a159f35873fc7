"""``kvstore batch``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from kvstore_cli import output
from kvstore_cli.client import connected
from kvstore_cli.commands.put import read_file
from kvstore_cli.flags import with_options
from kvstore_cli.problems import problem_error
from kvstore_cli.service import Service
from kvstore_client.errors import EXIT_DONE

# Independent ops gain nothing from larger requests, and the limits of a service are seldom smaller.
_REQUEST_OPS = 1000
_REQUEST_BYTES = 4 * 1024 * 1024


@click.command()
@click.argument("file")
@click.option("--atomic", is_flag=True, help="All or nothing, in one revision; each key at most once.")
@with_options("client")
@click.pass_context
def command(context: click.Context, file: str, atomic: bool) -> int:
    """Do the operations in FILE (- is standard input), and print the result of each as JSON, one a
    line, in the same order.

    FILE holds one JSON object a line, or one JSON document: a list of operations, or
    {"atomic": true, "ops": [...]}.

    \b
    An operation is
      {"op": "put", "key": K, "value": TEXT}    also value_b64, content_type, ttl, if_revision
      {"op": "get", "key": K}
      {"op": "delete", "key": K}                also if_revision
      {"op": "delete_prefix", "prefix": P}
      {"op": "incr", "key": K, "by": N}
      {"op": "touch", "key": K, "ttl": SECONDS}
      {"op": "persist", "key": K}

    Without --atomic each operation succeeds or fails alone, and a large file is sent in parts.

    Exit status: 0, or that of the first operation that failed.

    \b
    Examples:
      kvstore batch changes.ndjson
      jq -c '.[] | {op: "put", key: .id, value: .name}' users.json | kvstore batch -
      echo '[{"op": "incr", "key": "a"}, {"op": "delete", "key": "b"}]' | kvstore batch - --atomic
    """
    ops, says_atomic = parse(sys.stdin.buffer.read() if file == "-" else read_file(file))
    with connected(context) as service:
        if atomic or says_atomic:
            return _print_results(_send(service, _encoded({"atomic": True, "ops": ops})))
        results = (result for part in _parts(ops) for result in _send(service, part))
        return _print_results(results)


def parse(text: bytes) -> tuple[list[Any], bool]:
    """The operations, and whether the document itself asks for an atomic batch. The service checks
    the operations; a usage error for what is not JSON."""
    try:
        document = json.loads(text)
    except ValueError:
        return [
            _parse_line(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()
        ], False
    if isinstance(document, dict) and "ops" in document:
        return document["ops"], document.get("atomic") is True
    return (document, False) if isinstance(document, list) else ([document], False)


def _parse_line(number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise click.UsageError(f"line {number} is not JSON: {error}") from error


def _parts(ops: list[Any]) -> Iterator[bytes]:
    """Requests of a bounded size that hold ``ops`` in order."""
    part: list[bytes] = []
    size = 0
    for encoded in map(_encoded, ops):
        if part and (len(part) == _REQUEST_OPS or size + len(encoded) > _REQUEST_BYTES):
            yield _joined(part)
            part, size = [], 0
        part.append(encoded)
        size += len(encoded)
    if part:
        yield _joined(part)


def _joined(ops: list[bytes]) -> bytes:
    return b'{"ops":[' + b",".join(ops) + b"]}"


def _encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _send(service: Service, body: bytes) -> list[dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    results: list[dict[str, Any]] = service.request("POST", "/v1/batch", body=body, headers=headers).json()[
        "results"
    ]
    return results


def _print_results(results: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> int:
    status, done, failed = EXIT_DONE, 0, 0
    for result in results:
        output.write_json(result)
        if "error" in result:
            failed += 1
            status = status or problem_error(result["error"]).row.exit
        else:
            done += 1
    output.talk(f"{done} done, {failed} failed")
    return status
