"""What the facade is started with. The option table of the command (``kvstore_cli.config.options``) has the
names, units, defaults and consequences; nothing has a second default here."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore_core.limits import MAX_PAGE_BYTES


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The facade's options, checked and in base units.

    ``cors_origins`` is empty for "CORS is off", ``allowed_hosts`` for the names that loopback has (for any
    name beyond it). ``daemon_timeout_ms`` bounds how long one HTTP
    request waits for the daemon. ``access`` is decided: ``required``, and there is a ``facade_key_file``, or
    ``off``, and there is none.
    """

    http: str
    workers: int
    requests: str
    changes: str
    daemon_timeout_ms: int
    max_body_bytes: int
    max_header_bytes: int
    max_connections: int
    max_streams: int
    stream_buffer_bytes: int
    max_held_bytes: int
    stream_heartbeat_ms: int
    cors_origins: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    access: str
    facade_key_file: str | None
    plain_http: bool
    tls_cert: str | None
    tls_key: str | None
    allow_anonymous: bool
    access_log: str
    slow_request_ms: int
    slow_log_ms: int
    log_level: str
    log_format: str

    @property
    def page_bytes(self) -> int:
        """How many bytes of values go into a page that is answered at once: with the rest of the answer, no
        more than the buffer of a connection, but for one value that is larger."""
        return min(self.stream_buffer_bytes * 3 // 4, MAX_PAGE_BYTES)

    @property
    def part_bytes(self) -> int:
        """How many bytes of values are read at once for an answer that is made while it is sent."""
        return min(self.stream_buffer_bytes // 4, MAX_PAGE_BYTES)
