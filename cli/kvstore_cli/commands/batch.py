"""``kvstore batch``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import click

from kvstore_cli.command_line.completion import complete_file
from kvstore_cli.command_line.context import connected
from kvstore_cli.command_line.flags import Command, with_options
from kvstore_cli.files.input_file import read_batch
from kvstore_cli.http_client.client import Service
from kvstore_cli.http_client.errors import problem_error
from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_DONE, KvError
from kvstore_core.media_types import JSON

# Independent ops gain nothing from larger requests, and the limits of a service are seldom smaller.
_REQUEST_OPS = 1000
_REQUEST_BYTES = 4 * 1024 * 1024


@click.command(cls=Command)
@click.argument("file", shell_complete=complete_file)
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
    ops, says_atomic = parse(read_batch(file))
    with connected(context) as service:
        return _print_results(done(service, ops, atomic=atomic or says_atomic))


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


def done(service: Service, ops: list[Any], *, atomic: bool = False) -> Iterator[dict[str, Any]]:
    """Do ``ops``, and give the result of each, in order: in one request if ``atomic``, else in as many as
    it takes. Raises the KvError of a request that failed as a whole."""
    if atomic:
        yield from _send(service, [_encoded(op) for op in ops], atomic=True)
        return
    for before, part in _parts(ops):
        yield from _send(service, part, before)


def _parts(ops: list[Any]) -> Iterator[tuple[int, list[bytes]]]:
    """Requests of a bounded size that hold ``ops`` in order, and how many ops stand before each."""
    part: list[bytes] = []
    before = size = 0
    for encoded in map(_encoded, ops):
        if part and (len(part) == _REQUEST_OPS or size + len(encoded) > _REQUEST_BYTES):
            yield before, part
            before, part, size = before + len(part), [], 0
        part.append(encoded)
        size += len(encoded)
    if part:
        yield before, part


def _encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _send(
    service: Service, ops: list[bytes], before: int = 0, *, atomic: bool = False
) -> list[dict[str, Any]]:
    body = b'{"atomic":%s,"ops":[%s]}' % (b"true" if atomic else b"false", b",".join(ops))
    headers = {"Content-Type": JSON}
    try:
        answer = service.request("POST", "/v1/batch", body=body, headers=headers).json()
    except KvError as error:
        raise _naming_op(error, ops, before) from error
    results: list[dict[str, Any]] = answer["results"]
    return results


def _naming_op(error: KvError, ops: list[bytes], before: int) -> KvError:
    """The error with the op that it is about, as the reader of the whole batch counts and knows it."""
    index = error.details.get("op")
    if not isinstance(index, int) or not 0 <= index < len(ops):
        return error
    message = re.sub(rf"^ops\[{index}\](: )?", "", error.message)
    at = f"ops[{before + index}]"
    if message.startswith("."):
        return KvError(error.code, at + message, **error.details)
    return KvError(error.code, f"{at}{_name_of(json.loads(ops[index]))}: {message.strip()}", **error.details)


def _name_of(op: Any) -> str:
    """What an op does, and to what."""
    if not isinstance(op, dict):
        return ""
    words = [str(op.get("op")), *(repr(op[name]) for name in ("key", "prefix") if name in op)]
    return f" ({' '.join(words)})"


def _print_results(results: Iterator[dict[str, Any]]) -> int:
    status, succeeded, failed = EXIT_DONE, 0, 0
    for result in results:
        output.write_json(result)
        if "error" in result:
            failed += 1
            status = status or problem_error(result["error"]).row.exit
        else:
            succeeded += 1
    output.talk(f"{succeeded} done, {failed} failed")
    return status
