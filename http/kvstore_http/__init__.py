from kvstore_client.systems import require_linux

require_linux()
