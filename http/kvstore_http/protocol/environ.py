"""What server and application leave for each other in the environ of a request, beside what PEP 3333 has."""

from __future__ import annotations

RAW_PATH = "kvstore.raw_path"
RAW_QUERY = "kvstore.raw_query"
"""From the server: the two halves of the request target, exactly as they were sent."""

REQUEST_ID = "kvstore.request_id"
"""From the server: the id of the request in logs and answers."""

BODY_AWAITED = "kvstore.body_awaited"
"""From the server: True where the client waits to hear whether to send the body (``Expect: 100-continue``). A
resource refuses what it can before it reads the body."""

NO_ROOM = "kvstore.no_room"
"""From the server: the KvError for which the connection is one too many."""

HAND_OVER = "kvstore.hand_over"
"""From the server: a function that takes a ``HandOver`` (:mod:`kvstore_http.server.response`), to which the
connection is given once the headers of the response are written."""

ROUTE = "kvstore.route"
"""From the router: the template of the route, for counters and logs."""

WAITS = "kvstore.waits"
"""From a resource: the client asked to wait, so how long the request took says nothing."""
