"""What stands around the code is right: versions, constraints, containers, units, workflows."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kvstore_cli.config.options import CONFIG, OPTIONS, SECRET_VARIABLES

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    name: [line for line in lines if not line.startswith("kvstored[")]
    for name, lines in PROJECT["project"]["optional-dependencies"].items()
}
"""What each extra asks for beside the extra of ours that it holds."""
PINNED = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
HOOK: dict[str, Any] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
PYTHONS = tuple(
    line.rpartition(" ")[2]
    for line in PROJECT["project"]["classifiers"]
    if line.startswith("Programming Language :: Python :: 3.")
)


NOT_OURS = {".git", *(ROOT / ".gitignore").read_text().replace("/", "").split()}


def ours(*patterns: str) -> list[Path]:
    """The files of the repository that match, without what git ignores; git itself may not be here."""
    found: list[Path] = []
    for pattern in patterns:
        for file in ROOT.glob(pattern):
            parts = file.relative_to(ROOT).parts
            if file.is_file() and not any(fnmatch(part, name) for part in parts for name in NOT_OURS):
                found.append(file)
    return found


# ── constraints.txt and requirements.txt ─────────────────────────────────────────────────────────


def pinned_in(name: str) -> dict[str, str]:
    """The packages of a file of constraints, each with its version and its hashes as they stand there."""
    return dict(re.findall(r"^([a-z0-9.-]+)(==[^#]*?)\n(?=[^ ]|\Z)", (ROOT / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["constraints.txt", "requirements.txt"])
def test_constraints_hold_versions_and_hashes_and_no_address(name: str) -> None:
    for line in (ROOT / name).read_text().splitlines():
        assert re.fullmatch(r"|#.*|[a-z0-9.-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line


def requirements() -> Iterator[Requirement]:
    """What the project asks for itself."""
    yield from map(Requirement, PROJECT["project"]["dependencies"])
    yield from map(Requirement, chain.from_iterable(EXTRAS.values()))
    yield from map(Requirement, PROJECT["dependency-groups"]["dev"])
    yield from map(Requirement, PROJECT["build-system"]["requires"])
    yield from map(Requirement, HOOK["dependencies"])


@pytest.mark.parametrize("requirement", list(requirements()), ids=str)
def test_constraints_satisfy_what_the_project_asks_for(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)])


def test_the_image_gets_the_constrained_versions() -> None:
    constraints = pinned_in("constraints.txt")
    assert len(constraints) == len(PINNED)
    for name, pin in pinned_in("requirements.txt").items():
        assert pin == constraints[name]


def test_the_image_gets_what_kvstore_is_run_and_built_with_and_no_more() -> None:
    needed: set[str] = set()
    lines = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    lines += [*EXTRAS["cli"], *EXTRAS["server"], *EXTRAS["etcd"], *HOOK["dependencies"]]
    while lines:
        requirement = Requirement(lines.pop())
        name = canonicalize_name(requirement.name)
        here = requirement.marker is None or any(map(requirement.marker.evaluate, environments()))
        if here and name not in needed:
            needed.add(name)
            lines += metadata.requires(name) or ()
    assert set(pinned_in("requirements.txt")) == needed


def environments() -> Iterator[dict[str, str]]:
    """Every platform that the constraints are for, as markers see it."""
    for python in PYTHONS:
        for machine in ("x86_64", "aarch64"):
            yield {
                **{name: str(value) for name, value in default_environment().items()},
                "python_version": python,
                "python_full_version": f"{python}.0",
                "platform_machine": machine,
                "extra": "",
            }


@pytest.mark.parametrize("name", PINNED)
def test_constraints_hold_what_every_supported_python_needs(name: str) -> None:
    for line in metadata.requires(name) or ():
        needed = Requirement(line)
        if needed.marker is None or any(map(needed.marker.evaluate, environments())):
            assert canonicalize_name(needed.name) in PINNED, f"{name} needs {line}"


def test_the_installed_versions_are_the_pinned_ones() -> None:
    assert {name: metadata.version(name) for name in PINNED} == PINNED


# ── names and versions ───────────────────────────────────────────────────────────────────────────


def test_the_changelog_speaks_of_the_version() -> None:
    version = PROJECT["project"]["version"]
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_license_is_the_one_that_the_package_names() -> None:
    assert PROJECT["project"]["license"] == "MIT AND Apache-2.0"
    ours, etcds = PROJECT["project"]["license-files"]
    assert ours == "LICENSE"
    assert (ROOT / ours).read_text().startswith("MIT License")
    assert "Apache License\n" in (ROOT / etcds).read_text()


# Put together here, so that this file does not hold what it looks for.
_REGISTRIES = ["pypi" + ".org", "python" + "hosted", "npm" + "js.", "deb" + ".debian", "--index" + "-url"]


def test_no_file_names_the_host_of_a_package_registry() -> None:
    for file in ours("**/*"):
        text = file.read_text(errors="replace")
        for host in _REGISTRIES:
            if host == "--index" + "-url" and file.name == "constraints.py":
                continue
            assert host not in text, f"{file.relative_to(ROOT)} names {host}"


# a placeholder, the compose file's image, what Kubernetes sets, and what is shown as misspelt
NO_OPTIONS = {
    "KVSTORE_NAME",
    "KVSTORE_IMAGE",
    "KVSTORE_HTTP_SERVICE_HOST",
    "KVSTORE_HTTP_SERVICE_PORT",
    "KVSTORE_HTTP_PORT",
    "KVSTORE_RETAIN_EVENT",
}


def test_every_variable_in_deployment_files_is_an_option() -> None:
    known = {*(row.variable for row in (*OPTIONS.values(), CONFIG)), *SECRET_VARIABLES}
    for file in (*ours("Dockerfile", "docker-compose.yaml", "deploy/**/*"), *ours("docs/*.md", "README.md")):
        named = set(re.findall(r"\bKVSTORE_[A-Z][A-Z_]*[A-Z]\b", file.read_text()))
        unknown = named - known - NO_OPTIONS
        unknown = {name for name in unknown if not name.startswith("KVSTORE_EVENT_")}
        assert not unknown, f"{file.relative_to(ROOT)} names {unknown}"


# ── scripts, units, containers, workflows ────────────────────────────────────────────────────────


def shell_scripts() -> list[Path]:
    return [
        file
        for file in ours("tools/*", ".ci/*", "deploy/systemd/*", "tests/containers/*")
        if file.read_text().startswith("#!")
    ]


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda script: script.name)
def test_shell_scripts_can_be_run_and_stop_at_the_first_failure(script: Path) -> None:
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert re.search(r"^set -eu", text, re.MULTILINE)
    shell = text.splitlines()[0].rpartition("/")[2].rpartition(" ")[2]
    subprocess.run([shell, "-n", script], check=True)


def test_every_target_of_the_makefile_is_in_its_help() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    assert phony == set(re.findall(r"^([a-z-]+):.* ## ", text, re.MULTILINE))


def test_the_image_is_given_every_package_and_nothing_secret() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    roots = {
        path.partition("/")[0] for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    }
    assert ignored[1] == "*"
    assert {
        f"!{name}"
        for name in (*roots, HOOK["path"], "pyproject.toml", "requirements.txt", "README.md", "LICENSE")
    } == {line for line in ignored if line.startswith("!")}


def test_the_workflow_tests_every_supported_python() -> None:
    text = (ROOT / ".github/workflows/checks.yaml").read_text()
    assert re.search(r"python: \[(.*)\]", text)[1] == ", ".join(f'"{python}"' for python in PYTHONS)  # type: ignore[index]


def test_a_release_is_installed_with_every_supported_python() -> None:
    (job,) = re.findall(r"(?s)  packages:\n.*?\n\n", (ROOT / ".github/workflows/release.yaml").read_text())
    assert tuple(re.findall(r"^ +(3\.\d+)$", job, re.MULTILINE)) == PYTHONS
    assert "make installs" in job


def test_the_values_of_variables_in_deployment_files_can_be_used() -> None:
    rows = {row.variable: row for row in OPTIONS.values()}
    found = []
    for file in ours("Dockerfile", "docker-compose.yaml", "deploy/**/*"):
        found += re.findall(r"\b(KVSTORE_[A-Z_]+)(?:=|: )\"?([^\s\"\\]+)", file.read_text())
    assert len(found) > 5
    for variable, value in found:
        if variable in rows:
            rows[variable].kind.parse(re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value))
