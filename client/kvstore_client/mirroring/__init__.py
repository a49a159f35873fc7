"""Mirrors: the present records in this process, followed, kept in a file, and proven equal to the store."""
