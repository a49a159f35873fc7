"""Where a daemon listens and clients look for it, unless told otherwise."""

DEFAULT_PORT = 5555
DEFAULT_REQUESTS = f"tcp://127.0.0.1:{DEFAULT_PORT}"
DEFAULT_CHANGES = f"tcp://127.0.0.1:{DEFAULT_PORT + 1}"
