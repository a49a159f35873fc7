"""Check a site that was built: ``python -m docs_site.check FOLDER``.

Every link within it leads to a file, and to an anchor of that file; and no page loads anything from another
host, since the site must work where there is no internet, and tell nobody who reads it. Ends with status 1
and a line for each fault.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"audio", "iframe", "img", "script", "source", "video"}
"""The elements whose ``src`` a browser loads by itself; ``link`` has more than one meaning."""
FETCHED_LINKS = {"icon", "modulepreload", "preload", "stylesheet"}


class BuiltPage(HTMLParser):
    """A page of HTML: its anchors, where its links lead, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors = {""}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag in LOADED and "src" in given:
            self.loads.append(given["src"])
        elif tag == "link" and "href" in given and FETCHED_LINKS & set(given.get("rel", "").split()):
            self.loads.append(given["href"])
        elif tag == "a" and "href" in given:
            self.links.append(given["href"])


def faults(site: Path) -> list[str]:
    """What is wrong in the site, one line for each fault."""
    read = cache(lambda file: BuiltPage(file.read_text()))
    found: list[str] = []
    for file in sorted(site.glob("**/*.html")):
        found += [f"{file.relative_to(site)}{fault}" for fault in _faults_of_page(site, file, read)]
    for sheet in sorted(site.glob("**/*.css")):
        loads = re.findall(r"url\(['\"]?((?:https?:)?//[^)'\"]+)", sheet.read_text())
        found += [f"{sheet.relative_to(site)} loads {address} from elsewhere" for address in loads]
    return found


def _faults_of_page(site: Path, file: Path, read: Callable[[Path], BuiltPage]) -> Iterator[str]:
    page = read(file)
    for address in (*page.loads, *page.links):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            if address in page.loads and parts.scheme != "data":
                yield f" loads {address} from elsewhere"
            continue
        target = _target(site, file, unquote(parts.path))
        if not target.is_file():
            yield f": {address} leads nowhere"
        elif target.suffix == ".html" and unquote(parts.fragment) not in read(target).anchors:
            yield f": {address} has no such anchor"


def _target(site: Path, page: Path, path: str) -> Path:
    """The file that ``path``, written in ``page``, means; a folder means its index."""
    if not path:
        return page
    target = site / path.lstrip("/") if path.startswith("/") else page.parent / path
    return target / "index.html" if target.is_dir() else target


def main() -> None:
    """Check the site in the folder that is the only argument."""
    sys.exit("\n".join(f"kvstore: {fault}" for fault in faults(Path(sys.argv[1]))) or None)


if __name__ == "__main__":
    main()
