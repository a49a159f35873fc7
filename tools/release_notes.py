"""What CHANGELOG.md says of one version, for the page of its release: ``tools/release_notes.py 1.2.3``.

Ends with status 1 if there is no such section, or if it still says that the version is not released.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def notes(changelog: str, version: str) -> str:
    """The text below the heading of ``version``; ``ValueError`` with what to do where there is none."""
    sections = re.split(r"^## (.+)\n", changelog, flags=re.MULTILINE)
    for heading, text in zip(sections[1::2], sections[2::2], strict=True):
        name, _, date = heading.partition(" ")
        if name == version:
            if not re.fullmatch(r"\(\d{4}-\d\d-\d\d\)", date):
                raise ValueError(f"CHANGELOG.md: write the day of the release: '## {version} (YYYY-MM-DD)'")
            return text.strip() + "\n"
    raise ValueError(f"CHANGELOG.md has no section '## {version} (YYYY-MM-DD)'; write one")


def main() -> None:
    """Print the notes of the version that is the only argument."""
    if len(sys.argv) != 2:
        sys.exit("usage: tools/release_notes.py VERSION")
    try:
        sys.stdout.write(notes(CHANGELOG.read_text(), sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
