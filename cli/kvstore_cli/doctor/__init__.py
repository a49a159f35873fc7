"""``kvstore doctor``: checks of the service, and of the proxies in front of it, from where a client runs.

A check is a function that takes a probe and yields findings, which are data. ``runner`` has the table
of checks, ``remedies`` that of causes and fixes.
"""
