"""What importing the package costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kvstore_client
from kvstore_client import commands
from kvstore_core.operations import OPERATIONS


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after ``statement``."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_error_table_brings_no_library_with_it() -> None:
    loaded = modules_after("import kvstore_core.errors")
    assert "kvstore_core.errors" in loaded
    assert not loaded & {"zmq", "orjson", "click", "asyncio", "kvstore_core.wire"}


def test_the_blocking_client_does_not_load_asyncio_sockets() -> None:
    assert "zmq.asyncio" not in modules_after("from kvstore_client import Client, Subscription")


@pytest.mark.parametrize("name", kvstore_client.__all__)
def test_everything_that_is_offered_is_there(name: str) -> None:
    assert name in dir(kvstore_client)
    assert getattr(kvstore_client, name) is not None


def test_what_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        _ = kvstore_client.Clinet


def test_every_operation_has_its_function() -> None:
    """One that answers in pages has it for a page."""
    made = {name for name in OPERATIONS if hasattr(commands, name) or hasattr(commands, f"{name}_page")}
    assert made == set(OPERATIONS)
