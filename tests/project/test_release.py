"""What a release says of itself, and what people are asked when they open an issue."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from release_notes import notes

from project.test_containers import check_schema

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REPOSITORY = PROJECT["project"]["urls"]["Source"]
IMAGE = REPOSITORY.replace("https://github.com/", "ghcr.io/")
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))
CHANGELOG = """# Changelog

## 0.3.0 (not released yet)

- New.

## 0.2.0 (2027-01-31)

- Two.

## 0.2.0.1

- No.
"""


def test_the_notes_of_a_release_are_its_section_of_the_changelog() -> None:
    assert notes(CHANGELOG, "0.2.0") == "- Two.\n"


@pytest.mark.parametrize(
    ("version", "advice"), [("0.3.0", "write the day"), ("0.2", "no section"), ("0.2.0.1", "write the day")]
)
def test_a_version_without_notes_or_day_is_not_released(version: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        notes(CHANGELOG, version)


def test_the_release_begins_by_looking_for_its_notes_and_shows_them() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())["jobs"]
    assert "tools/release_notes.py" in jobs["version"]["steps"][-1]["run"]
    assert "--notes-file" in jobs["release"]["steps"][-1]["run"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda file: file.name)
def test_the_forms_of_issues_are_what_their_schema_says(form: Path) -> None:
    check_schema(form, "vendor.github-issue-forms")


def test_the_repository_and_its_image_have_one_name_everywhere() -> None:
    """That of ``urls.Source`` in pyproject.toml."""
    for url in PROJECT["project"]["urls"].values():
        assert url == REPOSITORY or url.startswith(f"{REPOSITORY}/")
    path = REPOSITORY.removeprefix("https://github.com/")
    for row in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        assert (
            re.search(r"https://(?:raw\.githubusercontent|github)\.com/(\w+/\w+)/", row["replacement"])[1]
            == path
        )  # type: ignore[index]
    shown = "".join((ROOT / page).read_text() for page in ("README.md", "docs/index.md", "docs/tutorial.md"))
    assert set(re.findall(r"ghcr\.io/[\w/.-]+", shown)) == {IMAGE}
    assert set(re.findall(r"git\+(https://[\w/.-]+)", shown)) == {REPOSITORY}
    assert f'link: "{REPOSITORY}"' in (ROOT / "mkdocs.yml").read_text()
    compose = (ROOT / "docker-compose.yaml").read_text()
    assert f"${{KVSTORE_IMAGE:-{IMAGE}:latest}}" in compose
