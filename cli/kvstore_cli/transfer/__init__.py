"""``kvstore export`` and ``kvstore import``: records as lines of JSON, out of a store and into one."""
