"""What bash offers for a line that is being typed, and what it would run."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from support.servers import free_port

pytestmark = pytest.mark.slow

Kvstore = Any
BREAKS = " \t\n\"'@><=;|&(:"


def completed(kvstore: Kvstore, line: str, breaks: str = BREAKS) -> list[str]:
    """What bash would put in place of the last piece of ``line``."""
    script = """
        source <(kvstore completion bash) || exit 1
        COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$2
        _kvstore_completion kvstore
        printf '%s\\n' "${COMPREPLY[@]}"
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


def test_bash_completes_commands_options_and_words(offline: Kvstore) -> None:
    assert completed(offline, "kvstore sub") == ["subscribe"]
    assert set(completed(offline, "kvstore wait --e")) == {"--exists", "--equals"}
    assert completed(offline, "kvstore serve --sync i") == ["interval"]
    assert completed(offline, "kvstore serve --sync=i") == ["interval"]


def test_keys_are_completed_as_arguments_and_as_prefixes(completing: Kvstore) -> None:
    for key in ("complete/one", "complete/two"):
        completing.out("put", key, "")
    for command in ("get", "get --prefix", "delete --prefix", "list --prefix", "subscribe --prefix"):
        assert completed(completing, f"kvstore {command} complete/") == ["complete/one", "complete/two"]


def test_a_key_with_colons_is_completed_from_the_last_one_where_bash_splits_there(
    completing: Kvstore,
) -> None:
    completing.out("put", "colon:é:alice", "")
    assert completed(completing, "kvstore get colon:é:al") == ["alice"]
    assert completed(completing, "kvstore get colon:é:") == ["alice"]
    assert completed(completing, "kvstore list --prefix=colon:") == ["é:alice"]
    assert completed(completing, "kvstore get colon:é:al", " \t\n") == ["colon:é:alice"]


@pytest.mark.parametrize(
    "tail",
    ["x;touch owned", "$HOME", "`touch owned`", "$(touch owned)", "a b", "*", "!!", "'", '"', "\\", "~", "&"],
)
def test_a_hostile_key_is_completed_to_one_word_that_is_the_key(completing: Kvstore, tail: str) -> None:
    key = f"hostile/{tail}"
    completing.out("put", "--", key, "")
    (word,) = completed(completing, "kvstore get hostile/")
    echoed = subprocess.run(
        ["bash", "-c", f"printf '<%s>' {word}"], capture_output=True, check=True, cwd=completing.folder
    )
    assert echoed.stdout.decode() == f"<{key}>"
    assert not (completing.folder / "owned").exists()
    completing.out("delete", "--", key)


def test_files_are_completed_where_files_are_read(completing: Kvstore) -> None:
    (completing.folder / "changes.ndjson").touch()
    for command in ("batch", "export", "import", "import --state"):
        assert completed(completing, f"kvstore {command} cha") == ["changes.ndjson"]
    assert completed(completing, "kvstore put k @cha") == ["@changes.ndjson"]
    assert completed(completing, "kvstore put k @cha", " \t\n") == ["@changes.ndjson"]
    assert completed(completing, "kvstore put k cha") == []


def test_completion_of_keys_is_silent_without_a_service(offline: Kvstore) -> None:
    offline.environment["KVSTORE_URL"] = f"http://127.0.0.1:{free_port()}"
    assert completed(offline, "kvstore get a") == []
