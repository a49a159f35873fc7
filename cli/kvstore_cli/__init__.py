"""The ``kvstore`` command."""
