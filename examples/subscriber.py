"""Follow a kvstore with nothing but pyzmq: every change once, in order, none missing.

    python examples/subscriber.py [--requests ENDPOINT] [--changes ENDPOINT] [--since CURSOR] [PREFIX]

Prints a JSON object for each change, with the cursor from which to continue after it. This is
section 5 of docs/protocol.md in its simplest form: a message that continues where the last one ended is
used, and in every other case the log is asked, which always has all of it.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import zmq

HEARTBEAT = b"\0heartbeat"
SILENCE_MS = 3_000
PING_MS, DEAD_MS = 1_000, 7_000
PAUSE_SECONDS = 0.1


class Subscriber:
    """The position is ``revision`` in the history ``epoch``: everything up to it has been shown."""

    def __init__(self, requests: str, changes: str, prefix: str) -> None:
        self.context = zmq.Context()
        self.attempts = itertools.count()
        self.requests, self.changes, self.prefix = requests, changes, prefix
        self.revision, self.epoch = 0, ""

    def follow(self, since: str | None) -> None:
        sub = self.connect()
        if since is None:
            status, _ = self.ask({"op": "status"})
            self.revision, self.epoch = status["revision"], status["epoch"]
        else:
            revision, self.epoch = since.split("-")
            self.revision = int(revision)
        print(json.dumps({"start": self.cursor}), flush=True)
        self.catch_up()
        while True:
            if sub.poll(SILENCE_MS):
                self.hear(*sub.recv_multipart())
            else:  # not even a heartbeat: the connection is dead, whatever TCP thinks
                sub.close(linger=0)
                sub = self.connect()
                self.catch_up()

    def connect(self) -> "zmq.Socket[bytes]":
        sub = self.context.socket(zmq.SUB)
        sub.subscribe(self.prefix.encode())
        sub.subscribe(HEARTBEAT)
        sub.connect(self.changes)
        return sub

    def hear(self, topic: bytes, header: bytes, value: bytes = b"") -> None:
        message = json.loads(header)
        if message["v"] != 1:
            return
        is_below = topic == HEARTBEAT and message["revision"] < self.revision
        if message["epoch"] != self.epoch or is_below:  # the store may have been restored, or rolled back
            self.catch_up()
        elif message["revision"] <= self.revision:
            return
        elif topic != HEARTBEAT and message["prev"] <= self.revision and message["count"] == 1:
            self.revision = message["revision"]
            self.show(message["op"], topic.decode(), value)
        else:  # something is missing, or this is a part of a batch: the log has all of it
            self.catch_up()

    def catch_up(self) -> None:
        """Show what the log holds after the position."""
        while True:
            op = {"op": "events", "since": self.cursor, "prefixes": [self.prefix]}
            page, values = self.ask(op)
            if "error" in page:
                self.reset(page["error"])
                return
            for event in page["events"]:
                value = next(values) if "size" in event else b""
                if "size" in event.get("previous", ()):
                    next(values)
                # the cursor moves on only with the last event of a revision
                self.revision = event["revision"] - (event["index"] < event["count"] - 1)
                self.show(event["op"], event["key"], value)
            self.revision = page["next"]
            if page["next"] == page["head"]:
                return

    def reset(self, error: dict[str, Any]) -> None:
        """The position has no continuation. A program that keeps state would now read it anew, as
        section 5.3 says; this one only shows what happens from here on."""
        if error["code"] != "cursor_expired":
            raise SystemExit(f"{error['code']}: {error['message']}")
        self.revision, self.epoch = error["head"], error["epoch"]
        print(json.dumps({"reset": error["reason"], "cursor": self.cursor}), flush=True)

    def show(self, op: str, key: str, value: bytes) -> None:
        change = {"cursor": self.cursor, "op": op, "key": key}
        if op == "put":
            change["value"] = value.decode(errors="replace")
        print(json.dumps(change), flush=True)

    @property
    def cursor(self) -> str:
        return f"{self.revision}-{self.epoch}"

    def ask(self, op: dict[str, Any]) -> tuple[dict[str, Any], Iterator[bytes]]:
        """The result of one op and its values, however long the daemon is away."""
        request = json.dumps({"v": 1, "ops": [op]}).encode()
        while True:
            # A request is repeated only when its connection was lost, which the monitor tells (section 6):
            # a daemon that is slow is not helped by more to do. A REQ socket whose reply is lost can never
            # send again, so each attempt has its own.
            with self.context.socket(zmq.REQ) as req:
                req.linger = 0
                req.heartbeat_ivl, req.heartbeat_timeout = PING_MS, DEAD_MS
                lost = req.get_monitor_socket(zmq.EVENT_DISCONNECTED, f"inproc://{next(self.attempts)}")
                req.connect(self.requests)
                req.send(request)
                zmq.zmq_poll([(req, zmq.POLLIN), (lost, zmq.POLLIN)], -1)
                req.disable_monitor()
                lost.close()
                if req.poll(0):
                    header, *values = req.recv_multipart()
                    break
            time.sleep(PAUSE_SECONDS)
        reply = json.loads(header)
        if "error" in reply:
            raise SystemExit(f"{reply['error']['code']}: {reply['error']['message']}")
        result = reply["results"][0]
        return result, cut(b"".join(values), result)


def cut(values: bytes, page: dict[str, Any]) -> Iterator[bytes]:
    """The values of a page of events, which stand one after another in one frame."""
    sizes = []
    for event in page.get("events", ()):
        sizes += [holder["size"] for holder in (event, event.get("previous", {})) if "size" in holder]
    ends = list(itertools.accumulate(sizes))
    return iter([values[end - size : end] for end, size in zip(ends, sizes, strict=True)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Follow a kvstore.")
    parser.add_argument("--requests", default="tcp://127.0.0.1:5555")
    parser.add_argument("--changes", default="tcp://127.0.0.1:5556")
    parser.add_argument("--since", metavar="CURSOR")
    parser.add_argument("prefix", nargs="?", default="")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        Subscriber(options.requests, options.changes, options.prefix).follow(options.since)
