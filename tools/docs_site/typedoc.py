"""Complete the reference of kvstore.js, ``python -m docs_site.typedoc PAGE``: what it exports, from the types
and comments in js/src. TypeDoc reads those, so this needs npm; the tests and the other pages do not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from docs_site.text import ROOT

TYPEDOC = ROOT / "tools/typedoc"
WRITTEN = ROOT / "build/typedoc/README.md"
"""Where tools/typedoc/typedoc.json says."""


def declarations() -> str:
    """What TypeDoc makes of kvstore.js. Ends the program where npm is missing."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("kvstore: the reference of kvstore.js is made with npm; install Node.js 20 or newer")
    for arguments in (["ci", "--ignore-scripts", "--no-audit", "--no-fund"], ["run", "build"]):
        subprocess.run([npm, *arguments, "--silent"], cwd=TYPEDOC, check=True)
    return tidied(WRITTEN.read_text())


def tidied(text: str) -> str:
    """TypeDoc's page without its title, its rules, and the headings that only fill the table of contents."""
    text = f"## {text.partition(chr(10) + '## ')[2]}"
    text = text.replace("__namedParameters", "options").replace("| - |", "| |")
    text = re.sub(r"^\*\*\*\n\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^#{3,6} (Properties|Methods)\n\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^#{3,6} (Extends|Extended by|Parameters|Returns)$", r"**\1**", text, flags=re.MULTILINE)
    text = re.sub(r"^\*\*(Extend.*)\*\*\n\n((?:- .*\n)+)", _in_one_line, text, flags=re.MULTILINE)
    text = re.sub(r"^#### ", "### ", text, flags=re.MULTILINE)  # members follow their class directly
    return with_anchors(text)


def _in_one_line(found: re.Match[str]) -> str:
    names = found[2].removeprefix("- ").rstrip().replace("\n- ", ", ")
    return f"**{found[1]}** {names}\n"


def with_anchors(text: str) -> str:
    """``text`` with the names as anchors, ``Connect`` and ``Kv.get``, also in its links: TypeDoc numbers
    those that differ in their case alone, and counts headings that are gone."""
    owner = ""

    def anchored(heading: re.Match[str]) -> str:
        nonlocal owner
        name = heading[2].removesuffix("()")
        owner = name if heading[1] == "##" else owner
        return f"{heading[0]} {{ #{name if name == owner else f'{owner}.{name}'} }}"

    text = re.sub(r"\[`(\w+)`\]\(#[^)]*\)", r"[`\1`](#\1)", text)
    return re.sub(r"^(#+) (.+)$", anchored, text, flags=re.MULTILINE)


def main() -> None:
    """Complete the page in the file that is the only argument."""
    page = Path(sys.argv[1])
    page.write_text(page.read_text() + declarations())


if __name__ == "__main__":
    main()
