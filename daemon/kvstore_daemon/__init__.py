"""The process that owns the store: it answers requests and publishes what changes."""

from kvstore_core.process.linux import require_linux

require_linux()
