"""The errors, where programs import them from."""

from kvstore_core.errors import *  # noqa: F403
