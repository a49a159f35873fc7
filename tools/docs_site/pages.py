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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docs_site.reference import REFERENCE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ICON = ROOT / "http/kvstore_http/ui/icon.svg"
EXTRAS = [ROOT / "tools/docs_site" / name for name in ("site.css", "iframe_worker/iframe-worker.js")]
"""The style of the site; and iframe-worker 1.0.4, since a browser gives pages on a disk no workers, and the
search is one."""
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY: str = PROJECT["urls"]["Source"]

_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_CODE_OR_TARGET = re.compile(r"`[^`\n]+`|(?<=\]\()[^)\s]+(?=\))")
_CODE_OR_FILE_NAME = re.compile(r"`[^`\n]+`|(?<=\[)([\w./-]+\.md)(?=\]\(\1[#)])")


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
    titles = {name: text.removeprefix("# ").partition("\n")[0] for name, text in written.items()}
    for name, text in written.items():
        text = with_pipes(with_titles(name, text, titles))
        yield name, with_links_of_the_site(name, text, here)


def with_pipes(text: str) -> str:
    """``text``, in which code within a table has pipes as they are: GitHub wants a backslash before one, and
    the site would show it."""

    def in_row(row: re.Match[str]) -> str:
        return re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), row[0])

    return re.sub(r"^\|.*$", in_row, text, flags=re.MULTILINE)


def with_titles(name: str, text: str, titles: Mapping[str, str]) -> str:
    """The ``text`` of page ``name``; links that show the file name of a page show its title."""

    def title_of(match: re.Match[str]) -> str:
        return titles.get(_from_docs(name, match[0]), match[0])

    return _changed_outside_code(text, _CODE_OR_FILE_NAME, title_of)


def with_links_of_the_site(name: str, text: str, here: set[str]) -> str:
    """The ``text`` of page ``name``; its links to what is not ``here`` on the site lead to the repository."""

    def address_of(match: re.Match[str]) -> str:
        path, mark, anchor = match[0].partition("#")
        if not path or ":" in path or _from_docs(name, path) in here:
            return match[0]
        return _in_repository(name, path) + mark + anchor

    return _changed_outside_code(text, _CODE_OR_TARGET, address_of)


def write_pages(folder: Path) -> None:
    """Make ``folder`` anew with all pages and pictures."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in pages():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for file in EXTRAS:
        shutil.copy(file, folder)
    (folder / "images").mkdir()
    for file in (ICON, *(DOCS / name for name in pictures())):
        shutil.copy(file, folder / "images")


def _changed_outside_code(text: str, pattern: re.Pattern[str], change: Callable[[re.Match[str]], str]) -> str:
    """``text`` with what ``pattern`` finds changed, but for fenced blocks and what is between backquotes."""
    parts = _FENCED.split(text)
    parts[::2] = [
        pattern.sub(lambda match: match[0] if match[0].startswith("`") else change(match), part)
        for part in parts[::2]
    ]
    return "".join(parts)


def _in_repository(page: str, path: str) -> str:
    file = (DOCS / page).parent.joinpath(path).resolve()
    if not file.exists():
        raise ValueError(f"docs/{page}: the link to {path} leads nowhere; correct it")
    kind = "tree" if file.is_dir() else "blob"
    return f"{REPOSITORY}/{kind}/v{PROJECT['version']}/{file.relative_to(ROOT)}"


def _from_docs(page: str, path: str) -> str:
    """``path``, as ``page`` has it, from docs/."""
    return os.path.normpath(Path(page).parent / path)


def _below_docs(file: Path) -> str:
    return file.relative_to(DOCS).as_posix()


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
