"""The npm package in js/: it builds, its types hold, also those of the page that uses it, and what the facade
serves is what was built."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import kvstore_http
from support.markdown import ROOT
from support.programs import require_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PACKAGE = ROOT / "js"
SERVED = Path(kvstore_http.__file__).parent / "ui" / "kvstore.js"
MOST_BYTES = 6_000

USER = """
import { connect, KvError, type Change, type Item, type Kv, type Snapshot } from "kvstore";

const kv: Kv = connect({ url: "http://127.0.0.1:5000", token: async () => "kv_…" });
const record = await kv.get("a");
const value: string | Uint8Array | undefined = record?.value;
const options = { sequence: true, ttl: "1h", guard: { lock: 41 } };
const { key, revision } = await kv.put("jobs/", { any: ["json"] }, options);
try {
  await kv.delete(key, { ifRevision: revision, ifValue: new Uint8Array(1) });
} catch (error) {
  if (error instanceof KvError && error.code === "condition_failed") console.log(error.revision, value);
}
await kv.batch([{ op: "check", key: "a", exists: true }, { op: "incr", key: "n", by: 2 }], { atomic: true });
for await (const item of kv.watch({ prefixes: ["a/"], since: "10m-ago", ops: ["put"], deliver: "latest" })) {
  const told: Item = item;
  if (item.op === "reset") console.log(item.reason);
  else if (item.op === "sync") console.log(item.cursor.length);
  else console.log((item satisfies Change).key, told);
}
const live = kv.live({ prefix: "a/" });
const snapshot: Snapshot = live.getSnapshot();
const end: () => void = live.subscribe(() => console.log(snapshot.entries.get("a/b")?.value));
end();
// @ts-expect-error: a misspelt option
await kv.put("a", "b", { ifrevision: 1 });
// @ts-expect-error: no such operation
await kv.batch([{ op: "append", key: "a" }]);
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, built with the versions of its lock file."""
    folder = tmp_path_factory.mktemp("js") / "js"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    npm(folder, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    npm(folder, "run", "build")
    return folder


def npm(folder: Path, *command: str) -> None:
    done = subprocess.run(
        [require_program("npm"), *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_served_is_what_was_built(built: Path) -> None:
    assert SERVED.read_bytes() == (built / "dist/kvstore.js").read_bytes(), "run 'make js'"


def test_the_libraries_of_the_page_are_what_their_lock_file_makes(built: Path) -> None:
    folder = built / "vendor"
    npm(folder, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    made = built.parent / "made"
    made.mkdir()
    done = subprocess.run(
        [require_program("node"), "build.mjs", str(made)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    committed = SERVED.parent / "vendor"
    assert {file.name: file.read_bytes() for file in made.iterdir()} == {
        file.name: file.read_bytes() for file in committed.iterdir()
    }, "run 'make vendor'"


def test_it_is_small() -> None:
    size = len(gzip.compress(SERVED.read_bytes(), 9))
    assert size < MOST_BYTES, f"{size} bytes"


def test_a_program_is_checked_by_its_types(built: Path) -> None:
    (built / "user.ts").write_text(USER)
    flags = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2023,dom"]
    flags += ["--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--skipLibCheck"]
    check_types(built, *flags, "user.ts")


def test_the_scripts_of_the_page_are_checked_by_their_types_and_those_of_the_module(built: Path) -> None:
    page = built / "page"
    shutil.copytree(SERVED.parent, page, ignore=shutil.ignore_patterns(SERVED.name))
    for script in page.glob("*.js"):
        assert script.read_text().startswith("// @ts-check\n"), script.name
    for declared in (built / "dist").glob("*.d.ts"):
        shutil.copy(declared, page)
    options = {"allowJs": True, "noEmit": True, "declaration": False, "emitDeclarationOnly": False}
    options |= {"rootDir": ".", "noUncheckedIndexedAccess": False}
    wanted = {"extends": "../tsconfig.json", "compilerOptions": options, "include": ["*.js"]}
    (page / "tsconfig.json").write_text(json.dumps(wanted))
    check_types(built, "--project", "page")


def check_types(folder: Path, *arguments: str) -> None:
    command = [require_program("node"), "node_modules/typescript/bin/tsc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_package_holds_what_is_needed_and_no_more(built: Path) -> None:
    listed = subprocess.run(
        [require_program("npm"), "pack", "--dry-run", "--json", "--ignore-scripts"],
        cwd=built,
        capture_output=True,
        text=True,
        check=True,
    )
    packed = json.loads(listed.stdout)
    (found,) = packed if isinstance(packed, list) else packed.values()
    names = {file["path"] for file in found["files"]}
    assert {"package.json", "README.md", "LICENSE", "dist/kvstore.js", "dist/kvstore.d.ts"} <= names
    rest = names - {"package.json", "README.md", "LICENSE", "dist/kvstore.js"}
    assert all(re.fullmatch(r"dist/\w+\.d\.ts", name) for name in rest), rest


def test_it_depends_on_nothing_and_is_of_the_version_and_licence_of_all() -> None:
    package = json.loads((PACKAGE / "package.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "dependencies" not in package
    assert "peerDependencies" not in package
    assert package["version"] == project["version"]
    assert package["license"] == "MIT"
    assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    for version in package["devDependencies"].values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_the_lock_file_has_hashes_and_no_address() -> None:
    lock = json.loads((PACKAGE / "package-lock.json").read_text())
    for name, entry in lock["packages"].items():
        assert "resolved" not in entry
        assert not name or entry["integrity"].startswith("sha512-")


def test_the_module_loads_nothing_else() -> None:
    assert not re.search(r"\bimport\s*[\"({]|\brequire\b", SERVED.read_text())
