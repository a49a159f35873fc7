"""The modules that are named for it can be compiled, and are what is compiled where kvstore is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

import pytest
from compile_wheel import MODULES

import kvstore_core.wire

ROOT = Path(__file__).parents[2]
IS_COMPILED = not str(kvstore_core.wire.__file__).endswith(".py")

TRANSLATE = """
import sys
from pathlib import Path
from compile_wheel import translate
translate(Path(), Path(sys.argv[1]))
"""


def name_of(module: str) -> str:
    """``core/kvstore_core/wire.py`` as it is imported."""
    return module.partition("/")[2].removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("module", MODULES)
def test_what_is_named_is_compiled_on_the_compiled_form_alone(module: str) -> None:
    assert (ROOT / module).is_file()
    loaded = str(import_module(name_of(module)).__file__)
    assert loaded.endswith(sysconfig.get_config_var("EXT_SUFFIX") if IS_COMPILED else ".py")


def test_no_module_is_named_that_is_run_by_its_name() -> None:
    """Python runs no compiled module with -m."""
    assert not [module for module in MODULES if '__name__ == "__main__"' in (ROOT / module).read_text()]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_is_named_can_be_compiled(tmp_path: Path) -> None:
    """By mypyc into C that a compiler takes; to compile it takes a minute, which 'make test-compiled' has."""
    command = [sys.executable, "-c", TRANSLATE, tmp_path]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "tools")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # such a class has no such attribute
    assert "Unsupported default attribute" not in done.stdout + done.stderr
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    import mypyc

    includes = [sysconfig.get_path("include"), f"{Path(mypyc.__file__).parent}/lib-rt", str(tmp_path)]
    (source,) = tmp_path.glob("__native_*.c")
    checked = subprocess.run(
        [compiler, "-fsyntax-only", *(f"-I{each}" for each in includes), source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr[:2000]
