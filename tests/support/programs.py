"""Programs of the distribution that some tests run; ``tools/needs`` installs them."""

from __future__ import annotations

import os
import shutil

import pytest

# Where Debian keeps servers; not everybody looks there.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def require_program(*names: str) -> str:
    """The path of the first of ``names`` that is installed. Where none is, the test is skipped, but
    under CI (``CI=true``) it fails: there the programs have to be."""
    for name in names:
        path = shutil.which(name, path=_PATH)
        if path is not None:
            return path
    missing = f"{names[0]} is not installed; 'make test' installs it, or: tools/needs {names[0]}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)
