"""Reads server-sent events from a response, as the HTML standard says and not more than that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from support.session import connect


class StreamEvent(NamedTuple):
    """One dispatched event. ``id`` is None where the event had no ``id`` field."""

    name: str
    id: str | None
    data: str

    @property
    def json(self) -> dict[str, Any]:
        """The data, decoded."""
        decoded: dict[str, Any] = json.loads(self.data)
        return decoded


class Stream:
    """An open event stream. Iterating gives events until the server ends it."""

    def __init__(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        self.connection = connection
        self.response = response

    def __iter__(self) -> Iterator[StreamEvent]:
        name, event_id, data = "message", None, []
        while line := self.response.readline():
            field, _, text = line.decode().rstrip("\r\n").partition(":")
            text = text.removeprefix(" ")
            if field == "event":
                name = text
            elif field == "id":
                event_id = text
            elif field == "data":
                data.append(text)
            elif not field and not text and line.strip() == b"":
                if data:
                    yield StreamEvent(name, event_id, "\n".join(data))
                name, event_id, data = "message", None, []

    def first(self) -> StreamEvent:
        """The first event; one that takes a while to come may have heartbeats before it."""
        return next(event for event in self if event.name != "heartbeat")

    def close(self) -> None:
        """Cut the connection."""
        self.response.close()
        self.connection.close()


def open_stream(
    url: str,
    query: str,
    last_id: str | None = None,
    *,
    timeout: float = 60,
    receive_buffer: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Stream:
    """Open ``/v1/subscribe?QUERY`` at the service ``url``; ``timeout`` is how long it may be silent.

    A small ``receive_buffer`` (bytes) makes a client that takes little at a time.
    """
    connection = HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    if receive_buffer is not None:
        connection.sock = connect(url, receive_buffer)
        connection.sock.settimeout(timeout)
    resumed = {"Last-Event-ID": last_id} if last_id else {}
    sent = {"Accept": "text/event-stream", **resumed, **(headers or {})}
    connection.request("GET", f"/v1/subscribe?{query}", headers=sent)
    response = connection.getresponse()
    assert response.status == 200, (response.status, response.read())
    return Stream(connection, response)
