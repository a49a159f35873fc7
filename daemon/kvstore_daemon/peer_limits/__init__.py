"""Bounds, in bytes, what anyone who connects can make the daemon keep."""
