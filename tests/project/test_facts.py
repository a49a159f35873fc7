"""What several modules need is written in one of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kvstore_cli.config.options import OPTIONS
from kvstore_core import limits, media_types
from kvstore_core.wire import Limits
from kvstore_http.metrics.exposition import CATALOGUE

ROOT = Path(__file__).parents[2]
MODULES = [
    file
    for package in ("core", "client", "daemon", "http", "cli", "contrib")
    for file in (ROOT / package).glob("kvstore_*/**/*.py")
]


@pytest.fixture(scope="module")
def written() -> dict[str, list[str]]:
    """Each string literal with the modules that have it, as often as they do."""
    found: dict[str, list[str]] = {}
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.setdefault(node.value, []).append(str(file.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("name", [name for name in vars(media_types) if name.isupper()])
def test_a_media_type_is_written_in_one_module(name: str, written: dict[str, list[str]]) -> None:
    assert written[getattr(media_types, name)] == ["core/kvstore_core/media_types.py"]


def test_a_metric_of_ours_is_named_by_its_row(written: dict[str, list[str]]) -> None:
    exposition = "http/kvstore_http/metrics/exposition.py"
    # kvstore top reads some of them, and build_info reads the names of its own labels
    twice = {name for name in CATALOGUE if written[name].count(exposition) > 1}
    assert twice <= {"kvstore_build_info"}
    others = {file for name in CATALOGUE for file in written[name]} - {exposition}
    assert all(file.startswith("cli/kvstore_cli/top/") for file in others), others


def test_options_begin_with_the_limits_of_a_request() -> None:
    defaults = {
        "max-batch-ops": "ops",
        "max-batch-bytes": "request_bytes",
        "max-atomic-ops": "atomic_ops",
        "max-atomic-bytes": "atomic_bytes",
        "max-value-bytes": "value_bytes",
    }
    for option, field in defaults.items():
        assert OPTIONS[option].default == getattr(Limits(), field), option


def test_the_limits_import_nothing() -> None:
    """So that the commands which start quickly can use them."""
    for module in (limits, media_types):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert [ast.unparse(node) for node in imported] == ["from __future__ import annotations"]
