"""``kvstore export`` and ``kvstore import``: records as lines of JSON; and backups from another machine."""
