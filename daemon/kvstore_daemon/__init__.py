from kvstore_core.process.linux import require_linux

require_linux()
