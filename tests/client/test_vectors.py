"""``docs/vectors``: the daemon answers so, our client does so, and so does one written from the protocol."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import zmq

from kvstore_client.subscription_state import Reset, SubscriptionState
from kvstore_core.digest import SetHash, record_hash
from kvstore_core.filters import Filter
from kvstore_core.model import Cursor
from kvstore_core.wire import decode_reply
from support.patience import PATIENCE_SECONDS
from support.programs import install_examples
from support.servers import Daemon
from support.wire import is_as_shown

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "docs" / "vectors"
CONVERSATIONS = json.loads((VECTORS / "requests.json").read_text())["conversations"]
SCENARIOS = json.loads((VECTORS / "subscriptions.json").read_text())["scenarios"]
DIGESTS = json.loads((VECTORS / "digests.json").read_text())["sets"]


def frame_of(shown: dict[str, Any]) -> bytes:
    if "json" in shown:
        return json.dumps(shown["json"]).encode()
    return shown["text"].encode() if "text" in shown else bytes.fromhex(shown["hex"])


def values_in(results: list[Any]) -> list[bytes]:
    found: list[bytes] = []
    for result in results:
        if not isinstance(result, dict):
            continue
        for holder in [result, *result.get("items", ()), *result.get("events", ())]:
            found += [part["value"] for part in (holder, holder.get("previous", {})) if "size" in part]
    return found


@pytest.mark.lmdb_only("the printed revisions are those of a new store in a file")
def test_the_daemon_answers_the_requests_so_and_our_decoder_finds_the_values(daemon: Daemon) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger, socket.rcvtimeo = 0, int(1000 * PATIENCE_SECONDS)
        socket.connect(daemon.requests)
        for conversation in CONVERSATIONS:
            for exchange in conversation["exchanges"]:
                socket.send_multipart([frame_of(frame) for frame in exchange["request"]])
                reply = socket.recv_multipart()
                shown = exchange["reply"]
                assert is_as_shown(shown[0]["json"], json.loads(reply[0])), (conversation["name"], reply[0])
                assert reply[1:] == [frame_of(frame) for frame in shown[1:]], conversation["name"]
                if "results" in shown[0]["json"]:
                    expected = [frame_of(value) for value in exchange["values"]]
                    assert values_in(decode_reply(reply).results) == expected, conversation["name"]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: re.sub(r"\W+", "-", scenario["name"]))
def test_our_subscriber_does_so(scenario: dict[str, Any]) -> None:
    subscription = SubscriptionState(
        Filter(tuple(scenario["prefixes"])),
        since=Cursor.parse(scenario["start"]),
        snapshot=False,
        values=True,
        previous=False,
        heartbeats=False,
        now=0,
    )
    asked = subscription.next_ops()
    for number, step in enumerate(scenario["steps"]):
        if "published" in step:
            subscription.on_message([frame_of(frame) for frame in step["published"]], 0)
        else:
            assert [op["op"] for op in asked] == ["events"]
            asked = []
            subscription.on_reply(decode_reply([frame_of(frame) for frame in step["reply"]]))
        delivered, is_reset = [], False
        while subscription.has_items:
            item = subscription.take()
            is_reset |= isinstance(item, Reset)
            if isinstance(item, list):
                delivered += [[event.revision, event.index, event.op, event.key] for event in item]
        assert delivered == step["delivers"], number
        assert is_reset == (step["then"] == "reset"), number
        if is_reset:
            continue
        assert subscription.cursor is not None
        assert subscription.cursor.revision == step["position"], number
        if not asked:
            asked = subscription.next_ops()
        assert bool(asked) == (step["then"] == "read"), number
        assert not asked or asked[0]["since"] == f"{step['position']}-{subscription.cursor.epoch}", number


@pytest.mark.parametrize("shown", DIGESTS, ids=lambda shown: re.sub(r"\W+", "-", shown["name"]))
def test_our_digests_are_so(shown: dict[str, Any]) -> None:
    hashes = [
        record_hash(record["key"].encode(), record["revision"], frame_of(record["value"]))
        for record in shown["records"]
    ]
    assert [each.hex() for each in hashes] == [record["hash"] for record in shown["records"]]
    there = SetHash()
    for each in reversed(hashes):
        there.replace(b"", each)
    assert there.hexdigest() == shown["digest"]
    for each in hashes:
        there.replace(each, b"")
    assert there.hexdigest() == SetHash().hexdigest() == "0" * 64


@pytest.mark.lmdb_only("the printed revisions are those of a new store in a file")
def test_a_client_in_another_language_passes_them(daemon: Daemon, tmp_path: Path) -> None:
    node = install_examples(tmp_path)
    script = shutil.copy(Path(__file__).with_name("vectors.mjs"), tmp_path)
    done = subprocess.run([node, script, str(VECTORS), daemon.requests], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = done.stdout.splitlines()
    of_kinds = {"subscription": SCENARIOS, "digest": DIGESTS, "requests": CONVERSATIONS}
    assert passed == [f"{kind}: {each['name']}" for kind, shown in of_kinds.items() for each in shown]
