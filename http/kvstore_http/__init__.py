"""The HTTP facade: workers that translate requests and streams for the daemon."""

from kvstore_core.process.linux import require_linux

require_linux()
