"""What shells offer for a line that is being typed, and what they would run."""

from __future__ import annotations

import itertools
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.programs import require_program
from support.servers import free_port, wait_until
from support.terminal import Terminal

Kvstore = Any
ROOT = Path(__file__).parents[2]
TAB = "\t"
BASH_SCRIPT = ROOT / "cli/kvstore_cli/completion/kvstore.bash"
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
FILE = "valfile, with: odd & chars.txt"

BREAKS = " \t\n\"'@><=;|&(:"

# The key, and what a person types of it: as much as tells it from the others, and a TAB.
KEYS = {
    "user@example.com": "user@ex",
    "at@": "at",
    "mail:me@home=x:y": "mail:me@home=x",
    "colon:é:alice": "colon:é:al",
    "with space": "with",
    "trailing ": "trail",
    "semi;touch owned": "semi",
    "dollar/$HOME": "dollar/",
    "tick/`touch owned`": "tick/",
    "glob/*": "glob/",
    "glob2/[a]?{b,c}": "glob2/",
    "bang/!!": "bang/",
    "quote/'": "quote/",
    'quote2/"': "quote2/",
    "back\\slash": "back",
    "amp/&|<>()": "amp/",
    "hash/#": "hash/",
    "equals=a=b": "equals=a",
    "comma,a": "comma",
    "ключ/ё": "ключ",
    "minus/-x": "minus/",
    "paren/$(touch owned)": "paren/",
    "tilde/~": "tilde/",
    "deep/er/key": f"de{TAB}er{TAB}k",
    "deep/er/other": f"de{TAB}er{TAB}o",
    "deep/ly/with space/x": f"de{TAB}l",
    "col:on/at@x/y": "col:o",
}


# ── what bash is offered ─────────────────────────────────────────────────────────────────────────


def completed(kvstore: Kvstore, line: str, breaks: str = BREAKS) -> list[str]:
    """What bash would put in place of the last piece of ``line``."""
    script = f"""
        source {BASH_SCRIPT}
        COMP_LINE=$1 COMP_POINT=${{#1}} COMP_WORDBREAKS=$2
        _kvstore_completion kvstore
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**kvstore.environment, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["bash", "-c", script, "bash", line, breaks],
        env=environment,
        cwd=kvstore.folder,
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return [word for word in done.stdout.decode().split("\n") if word]


def test_bash_completes_commands_options_and_words(completing: Kvstore) -> None:
    assert completed(completing, "kvstore sub") == ["subscribe", "subscribers"]
    assert set(completed(completing, "kvstore wait --e")) == {"--exists", "--equals"}
    assert completed(completing, "kvstore serve --sync i") == ["interval"]
    assert completed(completing, "kvstore serve --sync=i") == ["interval"]


def test_keys_are_completed_as_arguments_and_as_prefixes(completing: Kvstore) -> None:
    for key in ("complete/one", "complete/two"):
        completing.out("put", key, "")
    for command in ("get", "get --prefix", "delete --prefix", "list --prefix", "subscribe --prefix"):
        assert completed(completing, f"kvstore {command} complete/") == ["complete/one", "complete/two"]


def test_keys_are_completed_folder_by_folder(completing: Kvstore) -> None:
    for key in ("level/a", "level/b/1", "level/b/2", "level/c/x", "level/-d/x"):
        completing.out("put", key, "")
    for typed in ("lev", "level/"):  # one that is alone is looked into
        shown = completed(completing, f"kvstore ls {typed}")
        assert shown == ["level/-d/", "level/a", "level/b/", "level/c/"]
    assert completed(completing, "kvstore get level/c") == ["level/c/x"]
    assert completed(completing, "kvstore get level/b/") == ["level/b/1", "level/b/2"]
    revision = completing.lines("get", "level/a", "--json")[0]["revision"]
    assert completed(completing, "kvstore put k v --guard level/", " \t\n") == [
        "level/-d/",
        f"level/a@{revision}",
        "level/b/",
        "level/c/",
    ]


def test_a_guard_is_completed_with_the_revision_that_its_key_has(completing: Kvstore) -> None:
    revision = completing.out("put", "guard/lock", "").decode().strip()
    assert completed(completing, "kvstore put k v --guard guard/", " \t\n") == [f"guard/lock@{revision}"]
    assert completed(completing, "kvstore put k v --guard=guard/", " \t\n=") == [f"guard/lock@{revision}"]


def test_files_are_completed_where_files_are_read(completing: Kvstore) -> None:
    (completing.folder / "changes.ndjson").touch()
    for command in ("batch", "export", "import", "import --state"):
        assert completed(completing, f"kvstore {command} cha") == ["changes.ndjson"]
    assert completed(completing, "kvstore put k @cha") == ["@changes.ndjson"]
    assert completed(completing, "kvstore put k @cha", " \t\n") == ["@changes.ndjson"]
    assert completed(completing, "kvstore put k cha") == []


def test_the_script_that_is_printed_is_the_one_that_is_installed(offline: Kvstore) -> None:
    for shell in ("bash", "zsh", "fish"):
        file = ROOT / f"cli/kvstore_cli/completion/kvstore.{shell}"
        assert offline.out("completion", shell) == file.read_bytes()


def test_the_script_for_bash_has_no_faults_that_shellcheck_knows() -> None:
    subprocess.run([require_program("shellcheck"), BASH_SCRIPT], check=True)


def test_completion_of_keys_is_silent_without_a_service(offline: Kvstore) -> None:
    offline.environment["KVSTORE_URL"] = f"http://127.0.0.1:{free_port()}"
    assert completed(offline, "kvstore get a") == []


# ── interactive shells ───────────────────────────────────────────────────────────────────────────


class Shell:
    """An interactive shell on a terminal. Each line that is typed ends with what says that it is done.

    What it finds as ``kvstore`` is the stand-in, which prints the words of a line that is run, as the shell
    passed them.
    """

    def __init__(self, kvstore: Kvstore, folder: Path, program: list[str], setup: str) -> None:
        environment = {
            **{name: value for name, value in kvstore.environment.items() if name != "TERM"},
            "LC_ALL": "C.UTF-8",
            "HOME": str(folder),
            "PS1": "> ",
        }
        self.folder = folder
        self.is_plain = True
        self.replaces_all = True
        self._terminal = Terminal(program, (200, 50), environment, folder)
        self._numbers = itertools.count()
        self.type(setup)

    def type(self, *lines: str) -> None:
        """Type ``lines``, each with Enter, and wait until all is done."""
        marker = self.folder / f"done{next(self._numbers)}"
        for line in lines:
            self._terminal.type(f"{line}\n")
        self._terminal.type(f" touch {marker.name}\n")
        try:
            wait_until(marker.exists, timeout=120, what=f"{lines!r} is done")
        except AssertionError as error:
            error.add_note(self._terminal.output[-3000:])
            raise

    def words(self, *lines: str) -> list[list[str]]:
        """The words behind ``kvstore`` in each of the commands that come of ``lines``."""
        outs = [self.folder / f"out{number}" for number in range(len(lines))]
        for out in outs:
            out.unlink(missing_ok=True)
        self.type(*(f"kvstore {line} > {out.name}" for line, out in zip(lines, outs, strict=True)))
        return [out.read_text(encoding="utf-8").split("\0")[:-1] if out.exists() else [] for out in outs]

    def close(self) -> None:
        """End the shell."""
        self._terminal.__exit__(None, None, None)


def bash(kvstore: Kvstore, folder: Path, setup: str) -> Shell:
    rc = folder / ".rc"
    rc.write_text(f"bind 'set bell-style none'\n{setup}\n")
    return Shell(kvstore, folder, ["bash", "--noprofile", "--rcfile", str(rc), "-i"], ":")


def zsh(kvstore: Kvstore, folder: Path, setup: str) -> Shell:
    (folder / ".zshrc").write_text(f"PS1='> '\n{setup}\n")
    return Shell(kvstore, folder, ["zsh", "-i"], ":")


def fish(kvstore: Kvstore, folder: Path) -> Shell:
    # else it looks for something to suggest after every letter
    return Shell(kvstore, folder, ["fish", "--interactive"], "set --global fish_autosuggestion_enabled 0")


SOURCED = "source <(kvstore completion bash)"
FEW_BREAKS = "COMP_WORDBREAKS=$' \\t\\n'"
FUNCTIONS = "fpath+=(~/.local/share/zsh/site-functions); autoload -Uz compinit; compinit -i"
# those without a script get it from where an installation puts it
SHELLS: dict[str, Callable[[Kvstore, Path], Shell]] = {
    "bash": lambda kvstore, folder: bash(kvstore, folder, SOURCED),
    "bash-completion": lambda kvstore, folder: bash(kvstore, folder, f". {BASH_COMPLETION}"),
    "bash-no-hosts": lambda kvstore, folder: bash(kvstore, folder, f"shopt -u hostcomplete; {SOURCED}"),
    "bash-few-breaks": lambda kvstore, folder: bash(
        kvstore, folder, f"COMP_WORDBREAKS=$' \\t\\n'; {SOURCED}"
    ),
    "zsh": lambda kvstore, folder: zsh(kvstore, folder, "source <(kvstore completion zsh)"),
    "zsh-installed": lambda kvstore, folder: zsh(kvstore, folder, FUNCTIONS),
    "fish": fish,
}


def install_scripts(folder: Path) -> None:
    """Put the scripts below ``folder`` as the wheel puts them below its prefix."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for source, target in project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"].items():
        if (ROOT / source).is_file():
            (folder / target).parent.mkdir(parents=True)
            (folder / target).symlink_to(ROOT / source)


@pytest.fixture(scope="module")
def filled(completing: Kvstore) -> Kvstore:
    """The command line against a service with the keys."""
    for key in KEYS:
        completing.out("put", "--", key, "")
    return completing


@pytest.fixture(scope="module", params=SHELLS)
def shell(
    request: pytest.FixtureRequest, filled: Kvstore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shell]:
    """A shell in a folder of its own."""
    require_program(request.param.partition("-")[0])
    if request.param == "bash-completion" and not BASH_COMPLETION.exists():
        require_program(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    install_scripts(folder / ".local")
    (folder / FILE).touch()
    (folder / "sub").mkdir()
    (folder / "sub" / "inner").touch()
    (folder / "changes: all.ndjson").touch()
    shell = SHELLS[request.param](filled, folder)
    # what differs between bashes is where they break words
    shell.is_plain = request.param in ("bash", "zsh", "fish")
    # fish leaves a quote open, and completes an option's value from its last colon
    shell.replaces_all = request.param != "fish"
    yield shell
    shell.close()


def test_a_key_is_completed_to_itself(shell: Shell) -> None:
    keys = {
        key: typed for key, typed in KEYS.items() if shell.is_plain or "@" in key or ":" in key or "," in key
    }
    words = shell.words(*(f"get {typed}{TAB}" for typed in keys.values()))
    assert words == [["get", key] for key in keys]
    assert not (shell.folder / "owned").exists()


def test_a_key_is_completed_as_the_value_of_an_option_and_in_quotes(shell: Shell) -> None:
    lines = {
        "list --prefix user@ex": ["list", "--prefix", "user@example.com"],
        "list --prefix=user@ex": ["list", "--prefix=user@example.com"],
        "list --prefix=mail:m": ["list", "--prefix=mail:me@home=x:y"],
        "get 'user@ex": ["get", "user@example.com"],
        "get 'dollar/": ["get", "dollar/$HOME"],
        'get "colon:é:al': ["get", "colon:é:alice"],
        'get "dollar/': ["get", "dollar/$HOME"],
    }
    if not shell.replaces_all:
        lines = {line: words for line, words in lines.items() if line.startswith("list") and ":" not in line}
    assert shell.words(*(f"{line}{TAB}" for line in lines)) == list(lines.values())


def test_files_commands_options_and_words_are_completed(shell: Shell) -> None:
    lines = {
        f"put conf @valf{TAB}": ["put", "conf", f"@{FILE}"],
        f"put conf2 @sub/{TAB}": ["put", "conf2", "@sub/inner"],
        f"bat{TAB}chang{TAB}": ["batch", "changes: all.ndjson"],
        f"conf{TAB}show --sync=non{TAB}": ["config", "show", "--sync=none"],
    }
    if not shell.replaces_all:  # what fish makes of the names of files is its own
        lines = {line: words for line, words in lines.items() if words[0] == "config"}
    assert shell.words(*lines) == list(lines.values())
