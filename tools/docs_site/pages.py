"""Write the pages of the site into a folder, for MkDocs or another renderer of Markdown:
``python -m docs_site.pages FOLDER``.

They are those of docs/, and the reference that is made of the code. docs/ is read on GitHub too, where a link
may lead to any file of the repository; on the site such a link leads to the file in the repository as it was
at the release. Written in plain Python, so that tests need no renderer, and the renderer can be another one.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs_site.reference import REFERENCE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ICON = ROOT / "http/kvstore_http/ui/icon.svg"
STYLE = ROOT / "tools/docs_site/site.css"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY: str = PROJECT["urls"]["Source"]

_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_CODE_OR_TARGET = re.compile(r"`[^`\n]+`|(?<=\]\()[^)\s]+(?=\))")


def sources() -> dict[str, str]:
    """Every page of the site as it is written, by its path below docs/, the generated ones among them."""
    texts = {_below_docs(file): file.read_text() for file in sorted(DOCS.glob("**/*.md"))}
    shown = {name: text for name, text in texts.items() if not name.startswith("vectors/")}
    return {**shown, **{name: write() for name, write in REFERENCE.items()}}


def pictures() -> list[str]:
    """The path below docs/ of every picture."""
    return sorted(_below_docs(file) for file in DOCS.glob("images/*.png"))


def pages() -> Iterator[tuple[str, str]]:
    """Each page by its path, with its links as they have to be on the site.

    Raises ``ValueError`` for a link to something that is not there.
    """
    written = sources()
    here = {*written, *pictures()}
    for name, text in written.items():
        yield name, with_links_of_the_site(name, text, here)


def with_links_of_the_site(name: str, text: str, here: set[str]) -> str:
    """The ``text`` of page ``name``; its links to what is not ``here`` on the site lead to the repository."""

    def target_of(match: re.Match[str]) -> str:
        target = match[0]
        if target.startswith("`") or re.match(r"[a-z]+:|#", target):
            return target
        path, mark, anchor = target.partition("#")
        file = os.path.normpath(DOCS / Path(name).parent / path)
        if os.path.relpath(file, DOCS) in here:
            return target
        return _in_repository(name, file) + mark + anchor

    parts = _FENCED.split(text)
    parts[::2] = [_CODE_OR_TARGET.sub(target_of, part) for part in parts[::2]]
    return "".join(parts)


def write_pages(folder: Path) -> None:
    """Make ``folder`` anew with all pages and pictures."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in pages():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    shutil.copy(STYLE, folder)
    (folder / "images").mkdir()
    for file in (ICON, *(DOCS / name for name in pictures())):
        shutil.copy(file, folder / "images")


def in_navigation(entries: list[Any]) -> Iterator[str]:
    """The pages that the ``nav`` of mkdocs.yml names, in its order, without addresses elsewhere."""
    for entry in entries:
        values = entry.values() if isinstance(entry, Mapping) else [entry]
        for value in values:
            if isinstance(value, list):
                yield from in_navigation(value)
            elif "://" not in value:
                yield value


def _in_repository(page: str, file: str) -> str:
    path = Path(file)
    if not path.exists():
        raise ValueError(f"docs/{page}: the link to {os.path.relpath(file, ROOT)} leads nowhere; correct it")
    kind = "tree" if path.is_dir() else "blob"
    return f"{REPOSITORY}/{kind}/v{PROJECT['version']}/{path.relative_to(ROOT)}"


def _below_docs(file: Path) -> str:
    return file.relative_to(DOCS).as_posix()


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
