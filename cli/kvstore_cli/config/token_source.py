"""Where a command has its token from: the one that is named, else that of the login file, else the first
admin's beside the service's own store.

Most commands find none, and those that do should not be slower for it: nothing slow is imported here.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from kvstore_cli.config.options import TOKEN_VARIABLE
from kvstore_cli.config.resolve import Configuration, ConfigurationError
from kvstore_core.access.login_file import default_path, normalized, read_entries
from kvstore_core.addresses import is_loopback
from kvstore_core.errors import KvError

_MOST_BYTES = 4096
_DERIVED = r"(?a)kvd_[\w-]+\.[\w-]{43}"
"""What is derived from a token has no check of its own that could be read without the service's key."""


class Token(NamedTuple):
    """A token to send. ``origin`` says where it is from. ``is_for_address``: it was stored for this very
    address, by somebody who was asked then whether it may go there."""

    text: str
    origin: str
    is_for_address: bool = False


class TokenSource:
    """The token of a configuration. One on standard input is read at once, before a value that may follow it;
    others are looked for when the first is asked for. :meth:`reread` looks again, since a file may have got
    a new one meanwhile."""

    def __init__(self, configuration: Configuration, *, may_read_stdin: bool = True) -> None:
        self._configuration = configuration
        self._token: Token | None = None
        self._is_found = False
        self._line: str | None = None
        if configuration["token-file"] == "-" and may_read_stdin:
            self._line = first_line_of_stdin()

    def token(self) -> Token | None:
        """The token for the service that is configured, None if there is none.

        Raises ConfigurationError for a file that cannot be read, ``unauthenticated`` for a mistyped token
        and ``not_allowed`` for a login file that others can read, or for a token that would cross a network
        in the clear.
        """
        if not self._is_found:
            self._token = self._find()
            self._is_found = True
        return self._token

    def reread(self) -> bool:
        """Look again; whether there is another token now."""
        before = self._token
        if before is None:
            return False
        self._is_found = False
        now = self.token()
        return now is not None and now.text != before.text

    def _find(self) -> Token | None:
        url = self._configuration["url"]
        token = self._looked_up(url)
        if token is None:
            return None
        check_form(token.text, token.origin)
        if not (token.is_for_address or self._configuration["plain-http"]):
            refuse_in_the_clear(url)
        return token

    def _looked_up(self, url: str) -> Token | None:
        return self._named() or _stored(url) or self._of_first_admin(url)

    def _named(self) -> Token | None:
        name = self._configuration["token-file"]
        if name is None:
            text = os.environ.get(TOKEN_VARIABLE, "").strip()
            return Token(text, f"the variable {TOKEN_VARIABLE}") if text else None
        if name == "-":
            return None if self._line is None else Token(self._line, _STDIN)
        try:
            with open(name, "rb") as file:  # noqa: PTH123 - pathlib is slow to import
                return Token(_decoded(file.read(_MOST_BYTES)), name)
        except OSError as error:
            raise ConfigurationError(f"--token-file {name}: {error.strerror}") from error

    def _of_first_admin(self, url: str) -> Token | None:
        folder = self._configuration.service_folder
        if folder is None or not _is_of_this_machine(url):
            return None
        path = f"{folder}/admin.token"
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                text, owner = _decoded(file.read(_MOST_BYTES)), os.fstat(file.fileno()).st_uid
        except OSError:  # not there, or not this user's
            return None
        return Token(text, path) if text and _is_served_by(url, owner) else None


class GivenToken(TokenSource):
    """One token, whatever the configuration names; ``origin`` says where it is from."""

    def __init__(self, configuration: Configuration, text: str, origin: str) -> None:
        super().__init__(configuration, may_read_stdin=False)
        self._given = Token(text, origin)

    def _looked_up(self, url: str) -> Token | None:  # noqa: ARG002
        return self._given


_STDIN = "standard input"


def check_form(text: str, origin: str) -> None:
    """Raise ``unauthenticated`` for what cannot be a token, without a word of it: it may be one that was cut
    off, or another secret."""
    from kvstore_core.access.tokens import token_id  # only for who has a token

    if text.startswith("kvd_"):
        if re.fullmatch(_DERIVED, text):
            return
    elif token_id(text) is not None:
        return
    what = "there is no token" if not text else "there is no token of kvstore, or a mistyped or cut off one,"
    raise KvError("unauthenticated", f"{what} in {origin}; a token has the form kv_ID_SECRET")


def refuse_in_the_clear(url: str) -> None:
    """Raise ``not_allowed`` if what is sent to ``url`` could be read on the way."""
    if url.startswith("http://") and not _is_of_this_machine(url):
        raise KvError(
            "not_allowed",
            f"the token was not sent: whoever is on the way to {url} could read it. Write https://, or, if "
            "the network can be trusted, give --plain-http (or KVSTORE_PLAIN_HTTP=1)",
        )


def _is_of_this_machine(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def _is_served_by(url: str, owner: int) -> bool:
    """Whether who listens there is the data folder's owner, this user or root. Any other user of the machine
    may listen in the place of a service that is down, and nobody has named the token that it would get."""
    from kvstore_cli.config.port_owners import owners_of_port  # only for who has this token

    parts = urlsplit(url)
    owners = owners_of_port(parts.port or (443 if parts.scheme == "https" else 80))
    return bool(owners) and owners <= {owner, os.geteuid(), 0}


def _stored(url: str) -> Token | None:
    path = default_path()
    if path is None:
        return None
    # never the entry for any address: whoever had us ask their service would have the token
    text = read_entries(path).get(normalized(url), {}).get("token")
    return None if text is None else Token(text, path, is_for_address=True)


def first_line_of_stdin() -> str:
    """What is before the first newline; the rest is left, since a value may follow."""
    line = b""
    try:
        while len(line) < _MOST_BYTES and (byte := os.read(0, 1)) not in (b"", b"\n"):
            line += byte
    except OSError as error:
        raise ConfigurationError(f"--token-file -: {error.strerror}") from error
    return _decoded(line)


def _decoded(data: bytes) -> str:
    return data.decode(errors="replace").strip()
