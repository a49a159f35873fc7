"""A facade that comes to the daemon without the right key says what is wrong, to all who have to know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from kvstore_core.access.login_file import CurveKeys
from kvstore_core.access.tokens import new_token
from support.protected import Protected
from support.servers import Daemon, Facade, wait_until
from support.session import assert_problem, call


def pair() -> tuple[str, str]:
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return public, secret


def key_of(kind: str, protected: Protected) -> CurveKeys | None:
    facade = protected.facade_keys
    return {
        "none": lambda: None,
        "unknown": lambda: CurveKeys(facade.server_key, *pair()),
        "of another daemon": lambda: CurveKeys(pair()[0], facade.public_key, facade.secret_key),
        "of somebody else": lambda: protected.keys("no-facade", "all:*"),
    }[kind]()


def key_file(folder: Path, keys: CurveKeys) -> str:
    file = folder / "some.key"
    file.touch(0o600)
    file.write_text(json.dumps({"*": keys._asdict()}))
    return str(file)


def all_that_is_told(facade: Facade, words: str) -> list[str]:
    """What callers are told, once all of it, and the log, has these words."""

    def has_words(said: str) -> str:
        return said if words in said else ""

    def refusal() -> str:
        answer = call(facade.url, "GET", "/v1/kv/x", token=new_token().text)
        return has_words(str(assert_problem(answer, "unavailable")["detail"]))

    def readiness() -> str:
        answer = call(facade.url, "GET", "/readyz?verbose")
        assert answer.status == 503
        return has_words(answer.body.decode())

    told = [wait_until(refusal, what="the 503 says it"), wait_until(readiness, what="/readyz says it")]
    wait_until(lambda: has_words(facade.stderr), what="the log says it")
    return told


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "lets in only who has a key: name facade.key of its data folder with --facade-key-file"),
        ("unknown", "does not know the key of --facade-key-file"),
        ("of another daemon", "its key is not the server_key of --facade-key-file"),
        ("of somebody else", "knows the key of --facade-key-file as that of somebody else"),
    ],
)
def test_the_log_the_503_and_readyz_say_what_is_wrong_with_the_key(
    protected: Protected, start_facade: Callable[..., Facade], tmp_path: Path, kind: str, words: str
) -> None:
    keys = key_of(kind, protected)
    options = {} if keys is None else {"facade_key_file": key_file(tmp_path, keys)}
    facade = start_facade(protected, daemon_timeout="1s", **options)
    # strangers are told too, and nothing of whose key it is
    for told in all_that_is_told(facade, words):
        assert str(tmp_path) not in told
        assert "no-facade" not in told


def test_a_key_that_is_not_needed_is_told_of_as_well(
    daemon: Daemon, start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    file = key_file(tmp_path, CurveKeys(pair()[0], *pair()))
    facade = start_facade(daemon, daemon_timeout="1s", facade_key_file=file)
    assert all_that_is_told(facade, "access is off at the daemon")
