"""The site of the documentation, as far as it can be tested without what renders it; 'make docs' does the
rest."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_site.check import faults
from docs_site.pages import (
    REPOSITORY,
    pages,
    sources,
    with_links_of_the_site,
    with_pipes,
    with_titles,
    write_pages,
)
from packaging.requirements import Requirement

from support.markdown import ROOT, anchors, links

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PAGES = dict(pages())


class SiteLoader(yaml.SafeLoader):
    """Reads mkdocs.yml without calling the functions that it names."""


SiteLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SITE: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), SiteLoader)  # noqa: S506 # it is a safe one


def in_navigation(entries: list[Any]) -> Iterator[str]:
    """The pages that a part of the navigation names."""
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(value, list):
                yield from in_navigation(value)
            else:
                yield value


def test_the_navigation_names_every_page_once() -> None:
    assert sorted(in_navigation(SITE["nav"])) == sorted(PAGES)


def test_the_site_links_to_the_repository_of_the_project() -> None:
    assert [each["link"] for each in SITE["extra"]["social"]] == [REPOSITORY]


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_site_lead_to_its_pages(name: str) -> None:
    for target in links(PAGES[name]):
        path, _, anchor = target.partition("#")
        page = (Path("/") / Path(name).parent / path).resolve().relative_to("/").as_posix() if path else name
        assert page in PAGES, target
        assert not anchor or anchor in anchors(PAGES[page]), f"{target}: no such heading"


def test_a_link_that_leaves_the_site_leads_to_the_file_of_the_release() -> None:
    text = (
        "`[a](../LICENSE)` [`b`](../../LICENSE#x)\n```\n[c](../../LICENSE)\n```\n"
        "[d](../../examples/) [e](../tutorial.md#f)"
    )
    assert with_links_of_the_site("howto/any.md", text, {"tutorial.md"}) == (
        f"`[a](../LICENSE)` [`b`]({REPOSITORY}/blob/v{VERSION}/LICENSE#x)\n```\n[c](../../LICENSE)\n```\n"
        f"[d]({REPOSITORY}/tree/v{VERSION}/examples) [e](../tutorial.md#f)"
    )


def test_a_link_that_shows_a_file_name_shows_the_title_of_the_page() -> None:
    text = "[../http.md](../http.md#errors) `[../http.md](../http.md)` [http.md](../http.md) [x.md](x.md)"
    assert with_titles("howto/any.md", text, {"http.md": "HTTP"}) == text.replace("[../http.md]", "[HTTP]", 1)


def test_code_in_a_table_shows_its_pipes_without_a_backslash() -> None:
    assert with_pipes("| `a\\|b` | c\\|d |\n`e\\|f`") == "| `a|b` | c\\|d |\n`e\\|f`"


def test_a_link_to_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"docs/any\.md: the link to gone\.md leads nowhere"):
        with_links_of_the_site("any.md", "[a](gone.md)", set())


def test_every_picture_that_a_page_shows_is_written_beside_it(tmp_path: Path) -> None:
    write_pages(tmp_path)
    shown = {
        (tmp_path / name).parent / path
        for name, text in PAGES.items()
        for path in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text)
    }
    assert shown
    assert all(file.is_file() for file in shown)
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.glob("**/*.md")} == set(sources())


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ('<a href="gone.html">', "a.html: gone.html leads nowhere"),
        ('<a href="b.html#gone">', "a.html: b.html#gone has no such anchor"),
        ('<img src="gone.png">', "a.html: gone.png leads nowhere"),
        ('<script src="https://cdn.example/x.js">', "a.html loads https://cdn.example/x.js from elsewhere"),
        ('<link rel="stylesheet" href="//cdn.example/x">', "a.html loads //cdn.example/x from elsewhere"),
    ],
)
def test_the_check_of_the_built_site_finds(html: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<h2 id="here"><a href="#here"></a><a href="https://example.org/">')
    (tmp_path / "a.html").write_text('<a href="b.html#here"><a href="./#top"><a href=".">')
    (tmp_path / "index.html").write_text('<p id="top">')
    assert faults(tmp_path) == []
    (tmp_path / "a.html").write_text(html)
    assert faults(tmp_path) == [said]


def test_what_renders_the_site_is_pinned_as_the_project_asks_for() -> None:
    pinned = dict(
        re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "docs/constraints.txt").read_text(), re.MULTILINE)
    )
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["docs"]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[requirement.name])
