"""Records, events and cursors, where programs import them from."""

from kvstore_core.model import *  # noqa: F403
