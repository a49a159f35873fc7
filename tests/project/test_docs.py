"""Prose and code say the same: links lead somewhere, options and routes exist, tables agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from kvstore_cli.command_line.group import cli
from kvstore_cli.config.options import OPTIONS
from kvstore_cli.doctor.remedies import CAUSES
from kvstore_cli.doctor.runner import CHECKS
from kvstore_core.access.identities import check_name
from kvstore_core.limits import MAX_ATOMIC_BYTES, MAX_CLUSTER_ATOMIC_OPS
from kvstore_daemon.storage.etcd_store import versions
from kvstore_daemon.storage.etcd_store.connection.address import PARAMETERS, parse_address
from support.markdown import ROOT, anchors, blocks, links, steps, table_rows

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[a-z]*/README.md")])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{target}: no such heading"


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def commands() -> dict[str, click.Command]:
    """Every command and subcommand by its words: ``get``, ``config show``."""
    found: dict[str, click.Command] = {}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            for inner in command.list_commands(click.Context(command)):
                subcommand = command.get_command(click.Context(command), inner)
                assert subcommand is not None
                found[f"{name} {inner}"] = subcommand
    return found


COMMANDS = commands()


def flags_of(command: click.Command) -> set[str]:
    """Every flag that ``command`` takes."""
    options = [option for option in command.params if isinstance(option, click.Option)]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)} | {"--help"}


ALL_FLAGS = set().union(*map(flags_of, COMMANDS.values())) | {row.flag for row in OPTIONS.values()}


def calls_of_kvstore(page: Path) -> list[str]:
    """What a page shows after ``kvstore `` in its shell blocks and in its inline code."""
    text = page.read_text()
    shown: list[str] = []
    for block in blocks(text):
        if block.language == "console":
            shown += [step.command for step in steps(block)]
        elif block.language in ("sh", "bash"):
            shown.append(block.text)
    shown += re.findall(
        r"`(kvstore [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    calls = [re.findall(r"(?:^|[|&;(] *)kvstore +([^|&;#\n]+)", each, re.MULTILINE) for each in shown]
    return [call.strip() for each in calls for call in each]


def without_quotes(call: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "''", call)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_shown_exist_with_their_flags(page: Path) -> None:
    for call in calls_of_kvstore(page):
        words = without_quotes(call).split()
        if not re.fullmatch(r"[a-z]+", words[0]):
            continue
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        assert name in COMMANDS, f"kvstore {call}"
        for flag in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", without_quotes(call).partition(" -- ")[0]):
            assert flag in flags_of(COMMANDS[name]), f"kvstore {call}: {flag} is not one of its flags"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_that_are_named_exist(page: Path) -> None:
    for flag in re.findall(r"`(--[a-z][a-z-]*)[^`]*`", page.read_text()):
        assert flag in ALL_FLAGS, f"{flag} is no flag of any command"


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def test_operations_names_the_limits_that_are_in_force() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    for what, limit, options in table_rows(text, "Sizes and limits"):
        for flag in re.findall(r"--([a-z-]+)", options):
            default = OPTIONS[flag].shown_default()
            assert default.replace(" ", "") in limit.replace(",", "").replace(" ", ""), f"{what}: --{flag}"


def test_operations_names_the_retention_that_is_in_force() -> None:
    for name in ("docs/operations.md", "README.md"):
        text = (ROOT / name).read_text().replace(",", "").replace(" ", "")
        for option in ("retain-events", "retain-bytes"):
            assert OPTIONS[option].shown_default().replace(" ", "") in text, f"{name}: --{option}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"`make ([a-z]+)", page.read_text())
        shown = re.findall(r"^make ([a-z]+)", page.read_text(), re.MULTILINE)
        assert set(named + shown) <= targets, name_of(page)


# ── what kvstore doctor looks at ─────────────────────────────────────────────────────────────────

PROXIES = (ROOT / "docs/proxies.md").read_text()


def test_proxies_shows_what_the_doctor_can_find_and_what_it_then_says() -> None:
    shown = [tuple(row) for row in table_rows(PROXIES, "What it finds")]
    assert shown == [(f"`{name}`", fix.nginx or "—", fix.others) for name, fix in CAUSES.items()]


def test_proxies_names_every_check_of_the_doctor() -> None:
    named = [name for row in table_rows(PROXIES, "`kvstore doctor`") for name in row[0].split(", ")]
    assert named == [check.name for check in CHECKS]


# ── the walk through the code ────────────────────────────────────────────────────────────────────

ONE_PUT = (ROOT / "docs/one-put.md").read_text()
PLACES = re.findall(r"`([a-z_/]+\.py)`\s+((?:`[A-Za-z_.]+`(?:,\s+)?)+)", ONE_PUT)


def names_in(file: Path) -> set[str]:
    """The classes, functions, methods and constants of a module: ``name`` or ``Class.name``."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
            found.update(f"{node.name}.{name}" for name in inner)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


def test_one_put_takes_ten_steps() -> None:
    assert re.findall(r"^\*\*(\d+)\. ", ONE_PUT, re.MULTILINE) == [str(number) for number in range(1, 11)]


def test_every_file_that_one_put_names_has_a_function_beside_it() -> None:
    assert len(PLACES) == len(re.findall(r"`[a-z_/]+\.py`", ONE_PUT))


@pytest.mark.parametrize(("file", "names"), PLACES)
def test_the_functions_that_one_put_names_exist(file: str, names: str) -> None:
    for name in re.findall(r"`([^`]+)`", names):
        assert name in names_in(ROOT / file)


# ── the map ──────────────────────────────────────────────────────────────────────────────────────


def rooms() -> list[list[str]]:
    """Each folder of modules with the first sentence of what it says of itself."""
    found = []
    for package in ("core", "client", "daemon", "http", "cli", "contrib"):
        for file in sorted(ROOT.glob(f"{package}/kvstore_*/**/__init__.py")):
            said = ast.get_docstring(ast.parse(file.read_text()))
            assert said, f"{file} does not say what its room is for"
            found.append([f"`{file.parent.relative_to(ROOT)}`", said.split("\n")[0].replace("``", "`")])
    return found


def test_the_map_shows_every_room_as_it_calls_itself() -> None:
    assert table_rows((ROOT / "docs/architecture.md").read_text(), "Rooms") == rooms()


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_files_that_are_named_are_there(page: str) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_.]*)`", (ROOT / page).read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


# ── the guarantees ───────────────────────────────────────────────────────────────────────────────

GUARANTEES = re.split(r"^### ", (ROOT / "docs/guarantees.md").read_text(), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("promise", GUARANTEES, ids=lambda promise: promise.split("\n")[0])
def test_each_guarantee_names_tests_that_are_there(promise: str) -> None:
    shown = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/\w+/\w+\.py)\)", promise)
    assert shown
    for name, file in shown:
        assert name in names_in(ROOT / file), f"{file} has no {name}"


# ── the cluster ──────────────────────────────────────────────────────────────────────────────────

CLUSTER = (ROOT / "docs/cluster.md").read_text()


def test_the_page_of_the_cluster_lists_the_defects_of_etcd() -> None:
    listed = [tuple(row) for row in table_rows(CLUSTER, "Versions of etcd")]
    assert listed == [
        (
            f"{defect.words}{' (refused)' if defect.is_refused else ''}",
            ", ".join(map(versions.dotted, defect.fixed)),
        )
        for defect in versions.DEFECTS
    ]


def test_the_versions_of_etcd_that_are_advised_have_no_known_defect() -> None:
    (advised,) = re.findall(r"; ((?:\d+\.\d+\.\d+, )+\d+\.\d+\.\d+) or later", CLUSTER)
    for version in advised.split(", "):
        assert versions.version_warning(version) is None
        major, minor, patch = versions.parse(version) or (0, 0, 0)
        assert versions.version_warning(f"{major}.{minor}.{patch - 1}") is not None, "an older one will do"
    for version in re.findall(r"Debian \d+ has (\d+\.\d+\.\d+)", CLUSTER):
        assert versions.version_warning(version) is not None


def test_the_page_of_the_cluster_lists_what_an_address_takes() -> None:
    listed = {
        name for row in table_rows(CLUSTER, "Setting it up") for name in re.findall(r"`([a-z-]+)=", row[0])
    }
    assert listed == set(PARAMETERS)
    shown = re.findall(r"--engine '(etcd:[^']+)'", CLUSTER)
    assert shown
    for address in shown:
        assert parse_address(address).endpoints == ("n1:2379", "n2:2379", "n3:2379")


def test_the_drop_in_for_a_cluster_names_the_credentials_that_it_loads() -> None:
    text = (ROOT / "deploy/systemd/cluster.conf").read_text()
    (address,) = re.findall(r'"KVSTORE_ENGINE=([^"]+)"', text)
    found = parse_address(address.replace("%N", "kvstore-daemon"))
    loaded = set(re.findall(r"^LoadCredential=([^:]+):", text, re.MULTILINE))
    assert {found.ca, found.cert, found.key} == {
        f"/run/credentials/kvstore-daemon.service/{name}" for name in loaded
    }
    files = set(re.findall(r"^LoadCredential=[^:]+:(.+)$", text, re.MULTILINE))
    assert files <= set(re.findall(r"/etc/etcd/\S+", CLUSTER)), "the page puts them elsewhere"


def test_the_page_of_the_cluster_says_which_limits_are_etcds() -> None:
    row = next(
        row for row in table_rows(CLUSTER, "What differs from one machine") if row[0] == "atomic batch"
    )
    assert row[2] == f"{MAX_CLUSTER_ATOMIC_OPS} operations and {MAX_ATOMIC_BYTES >> 20} MiB"


def test_identities_that_are_shown_may_be_made() -> None:
    """Some names are kvstore's own."""
    files = [*PAGES, *ROOT.glob("deploy/*.yaml")]
    names = {
        name
        for file in files
        for name in re.findall(r"kvstore (?:token|key) create ([a-z][\w.-]*)", file.read_text())
    }
    assert len(names) > 1
    for name in names:
        check_name(name)
