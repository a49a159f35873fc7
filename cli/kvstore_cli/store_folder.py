"""What the commands that work on the store's files share."""

from __future__ import annotations

from pathlib import Path

import click

from kvstore_cli.command_line.flags import given_flags
from kvstore_cli.config.resolve import resolve
from kvstore_core.units import BYTES


def data_folder(context: click.Context) -> Path:
    """The data folder that is meant."""
    return Path(resolve(given_flags(context), "store").data_folder())


def size(count: int) -> str:
    """A number of bytes for a person."""
    return f"{count / BYTES['MiB']:,.1f} MiB" if count >= BYTES["MiB"] else f"{count:,} bytes"
