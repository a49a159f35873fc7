"""What is installed for systemd: it understands the units, they give away little, and the script that
installs them keeps what is an operator's."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from kvstore_cli.config.options import OPTIONS
from support.programs import require_program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
UNITS = [*SERVICES, *sorted(FOLDER.glob("*.socket"))]
PROGRAM = "/opt/kvstore/bin/kvstore"
MOST_EXPOSURE = 20
"""In tenths, as `systemd-analyze security` wants it."""


def name_of(file: Path) -> str:
    return file.name


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units, starting a program that is installed where tests run."""
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    return tmp_path


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_units_are_understood_by_systemd(unit: Path, units: Path) -> None:
    analyze = require_program("systemd-analyze")
    done = subprocess.run([analyze, "verify", units / unit.name], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "kvstore" in line]
    assert not complaints


@pytest.mark.parametrize("unit", SERVICES, ids=name_of)
def test_services_expose_little(unit: Path, units: Path) -> None:
    analyze = require_program("systemd-analyze")
    command = [analyze, "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}"]
    done = subprocess.run([*command, units / unit.name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert found is not None
    page = (ROOT / "docs/systemd.md").read_text()
    assert float(found[1]) <= float(re.search(r"the exposure of each at ([\d.]+) of 10", page)[1])  # type: ignore[index]


@pytest.mark.parametrize("unit", SERVICES, ids=name_of)
def test_services_start_a_command_notify_and_are_watched(unit: Path) -> None:
    text = unit.read_text()
    command = unit.stem.removeprefix("kvstore-")
    assert f"\nExecStart={PROGRAM} {command}\n" in text
    assert "\nType=notify\n" in text
    assert "\nWatchdogSec=30\n" in text


def test_the_services_may_do_the_same() -> None:
    """One list of what is forbidden, in two files: it must not drift apart."""
    lists = [unit.read_text().partition("# What it may do")[2].splitlines() for unit in SERVICES]
    sets = [{line for line in each if line and not line.startswith(("#", "ProcSubset="))} for each in lists]
    assert len(sets[0]) > 30
    assert sets[0] == sets[1]


def test_the_socket_is_where_the_facade_listens_by_default() -> None:
    text = (FOLDER / "kvstore-http.socket").read_text()
    assert f"\nListenStream={OPTIONS['http'].default}\n" in text


def test_the_settings_that_are_installed_are_the_defaults_commented_out_and_access() -> None:
    rows = {row.variable: row for row in OPTIONS.values()}
    lines = (FOLDER / "kvstore.env").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == ["KVSTORE_ACCESS=required"]
    shown = [match for line in lines if (match := re.fullmatch(r"#(KVSTORE_\w+)=(.*)", line))]
    assert len(shown) > 5
    for match in shown:
        row = rows[match[1]]
        if row.name != "allowed-hosts":
            assert row.kind.parse(match[2]) == row.default_value(), match[0]


# ── the script ───────────────────────────────────────────────────────────────────────────────────

INSTALL = FOLDER / "install"


def run(*arguments: str | Path, status: int = 0) -> str:
    done = subprocess.run([INSTALL, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--what"], "there is no option '--what'"),
        (["--root"], "--root needs a value"),
        (["--purge"], "--purge goes with --uninstall"),
        (["--uninstall", "--yes"], "--yes goes with --uninstall --purge"),
        (["now"], "there is no option 'now'"),
        (["--uninstall", "--purge", "--python"], "--python needs a value"),
    ],
)
def test_what_the_script_does_not_know_is_named_and_changes_nothing(arguments: list[str], wrong: str) -> None:
    said = run(*arguments, status=2)
    assert "deploy/systemd/install --uninstall" in said
    assert said.endswith(f"kvstore: {wrong}\n")


def test_the_help_has_a_line_for_each_option_and_for_each_place() -> None:
    done = subprocess.run([INSTALL, "--help"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert re.findall(r"^(--\w+)", done.stdout, re.MULTILINE) == [
        "--python", "--root", "--uninstall", "--purge", "--yes"
    ]  # fmt: skip
    assert "/etc/kvstore/kvstore.env      the settings, made once" in done.stdout
    assert "#" not in done.stdout


def test_a_python_that_is_too_old_or_missing_is_named(tmp_path: Path) -> None:
    assert "no 'python9' here" in run("--root", tmp_path / "root", "--python", "python9", status=1)
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    assert "3.11 or newer is needed" in run("--root", tmp_path / "root", "--python", old, status=1)
    assert not (tmp_path / "root").exists()


LINKS = {
    "usr/local/bin/kvstore": "bin/kvstore",
    "usr/local/share/man/man1/kvstore.1": "share/man/man1/kvstore.1",
    "usr/local/share/man/man1/kvstore-get.1": "share/man/man1/kvstore-get.1",
    "usr/local/share/bash-completion/completions/kvstore": "share/bash-completion/completions/kvstore",
    "usr/local/share/zsh/site-functions/_kvstore": "share/zsh/site-functions/_kvstore",
    "etc/fish/completions/kvstore.fish": "share/fish/vendor_completions.d/kvstore.fish",
}
"""Where links to the program's files are; of the man pages, two."""


def installed(root: Path) -> None:
    """What an installation leaves, in short."""
    for name in ("etc/systemd/system", "etc/kvstore", "var/lib/kvstore"):
        (root / name).mkdir(parents=True)
    for link, name in LINKS.items():
        for path in (root / link, root / f"opt/kvstore/{name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
        (root / f"opt/kvstore/{name}").touch()
        (root / link).symlink_to(f"/opt/kvstore/{name}")
    (root / "etc/kvstore/kvstore.env").write_text("KVSTORE_SYNC=always\n")
    (root / "var/lib/kvstore/owner").touch()
    for unit in UNITS:
        (root / "etc/systemd/system" / unit.name).touch()
    (root / "etc/systemd/system/other.service").touch()


def files(root: Path) -> set[str]:
    return {str(file.relative_to(root)) for file in root.rglob("*") if not file.is_dir()}


def test_uninstalling_leaves_settings_and_store_unless_told_otherwise(tmp_path: Path) -> None:
    installed(tmp_path)
    kept = {"etc/kvstore/kvstore.env", "var/lib/kvstore/owner"}
    others = {"etc/systemd/system/other.service"}
    run("--uninstall", "--root", tmp_path)
    assert files(tmp_path) == kept | others
    run("--uninstall", "--root", tmp_path)
    assert files(tmp_path) == kept | others
    assert "add --yes" in run("--uninstall", "--purge", "--root", tmp_path, status=1)
    assert files(tmp_path) == kept | others
    run("--uninstall", "--purge", "--yes", "--root", tmp_path)
    assert files(tmp_path) == others


@pytest.mark.parametrize(("answer", "is_meant"), [(b"y\n", True), (b"\n", False), (b"no\n", False)])
def test_on_a_terminal_purging_asks_before_anything_is_removed(
    answer: bytes, is_meant: bool, tmp_path: Path
) -> None:
    installed(tmp_path)
    before = files(tmp_path)
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    command = [INSTALL, "--uninstall", "--purge", "--root", tmp_path]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True)
    os.close(theirs)
    os.close(ours)
    assert "for good? [y/N]" in done.stderr
    assert done.returncode == (0 if is_meant else 1)
    assert (files(tmp_path) == before) is not is_meant


@pytest.mark.parametrize("name", LINKS)
def test_uninstalling_leaves_what_has_such_a_name_and_is_not_ours(name: str, tmp_path: Path) -> None:
    installed(tmp_path)
    link = tmp_path / name
    link.unlink()
    link.symlink_to("/somewhere/else")
    run("--uninstall", "--root", tmp_path)
    assert link.is_symlink()
    link.unlink()
    link.touch()
    run("--uninstall", "--root", tmp_path)
    assert link.exists()


PYTHON = """#!/bin/sh
case "$*" in *' venv '*) for folder; do :; done
    mkdir -p "$folder/bin" "$folder/lib" "$folder/share/man/man1"
    cp "$0" "$folder/bin/python"
    touch "$folder/pyvenv.cfg" "$folder/bin/kvstore" "$folder/share/man/man1/kvstore.1" ;;
esac
"""
"""Makes environments that have nothing but files of that name."""


@pytest.mark.parametrize("foreign", ["file", "link"])
def test_installing_leaves_what_has_such_a_name_and_is_not_ours(foreign: str, tmp_path: Path) -> None:
    python, root = tmp_path / "python", tmp_path / "root"
    python.write_text(PYTHON)
    python.chmod(0o755)
    program, page = root / "usr/local/bin/kvstore", root / "usr/local/share/man/man1/kvstore.1"
    program.parent.mkdir(parents=True)
    (tmp_path / "theirs").write_text("theirs")
    if foreign == "file":
        program.write_text("theirs")
    else:
        program.symlink_to(tmp_path / "theirs")
    for _ in range(2):  # the second time over our own links
        said = run("--root", root, "--python", python)
        assert said.count("is not ours") == 1
        assert f"{program} is not ours" in said
        assert program.read_text() == "theirs"
        assert str(page.readlink()) == "/opt/kvstore/share/man/man1/kvstore.1"


def test_links_lead_to_what_the_wheel_puts_below_its_prefix() -> None:
    linked = dict(re.findall(r"^    (\S+):/(\S+)$", INSTALL.read_text(), re.MULTILINE))
    assert linked == {str(Path(name).parent): str(Path(link).parent) for link, name in LINKS.items()}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in wheel["shared-data"].items():
        assert (target if (ROOT / source).is_dir() else str(Path(target).parent)) in linked


def test_the_script_has_no_faults_that_shellcheck_knows() -> None:
    subprocess.run([require_program("shellcheck"), INSTALL], check=True)
