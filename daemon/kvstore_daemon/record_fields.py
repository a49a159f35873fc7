"""Records and events as the dicts in replies and in the headers of published events.

Optional fields without a value are left out. ``size`` is there if the value travels beside.
"""

from __future__ import annotations

from typing import Any

from kvstore_daemon.storage.interface import StoredEvent, StoredRecord

Fields = dict[str, Any]


def record_fields(record: StoredRecord) -> Fields:
    """The record's metadata; ``size`` too if its value is at hand."""
    value, content_type, revision, create_revision, version, modified_at, expires_at, author, message = record
    fields: Fields = {
        "revision": revision,
        "create_revision": create_revision,
        "version": version,
        "content_type": content_type,
        "modified_at": modified_at,
    }
    if expires_at is not None:
        fields["expires_at"] = expires_at
    if author:
        fields["author"] = author
    if message:
        fields["message"] = message
    if value is not None:
        fields["size"] = len(value)
    return fields


def event_fields(event: StoredEvent) -> Fields:
    """The fields that an event has both as published and in a reply; without ``size``."""
    fields: Fields = {
        "op": event.op,
        "revision": event.revision,
        "index": event.index,
        "count": event.count,
        "time": event.time,
        "previous_revision": event.previous_revision,
    }
    record = event.record
    if record is not None:
        fields["content_type"] = record.content_type
        fields["create_revision"] = record.create_revision
        fields["version"] = record.version
        fields["modified_at"] = record.modified_at
        if record.expires_at is not None:
            fields["expires_at"] = record.expires_at
    if event.author:
        fields["author"] = event.author
    if event.message:
        fields["message"] = event.message
    return fields
