"""What etcd says of keys: values with revisions, and changes by revision. The fields' names are etcd's."""

from __future__ import annotations

from typing import NamedTuple


class KeyValue(NamedTuple):
    """A key of etcd with its value and its revisions."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int


class Change(NamedTuple):
    """One event of etcd's watch; of a delete only key and mod_revision are known."""

    is_put: bool
    kv: KeyValue


class Revision(NamedTuple):
    """All changes below the prefix that one revision of etcd made, in their order."""

    revision: int
    changes: list[Change]
