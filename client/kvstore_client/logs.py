"""What the logs of daemon and facade have in common; only ``logging`` itself is needed for it.

How a line looks and where it goes is decided by whoever starts the servers (``kvstore_cli.logs``).
"""

from __future__ import annotations

import logging

announcer = logging.getLogger("kvstore.announce")
"""For the lines that are promised: they come whatever the log level is, and scripts read them."""
announcer.setLevel(logging.INFO)
