"""The table of options.

A row has an option's name, from which come the flag ``--retain-age``, the variable ``KVSTORE_RETAIN_AGE`` and
the key ``retain-age`` of the TOML file, the kind of its value, its default, what it does, and who takes it.
Flags, help texts, settings, ``kvstore config`` and the tables of ``docs/configuration.md`` come from here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from kvstore_cli.config import option_values
from kvstore_core import limits
from kvstore_core.access.login_file import VARIABLE as LOGIN_FILE_VARIABLE
from kvstore_core.addresses import DEFAULT_CHANGES, DEFAULT_REQUESTS

PREFIX = "KVSTORE_"


class Kind(NamedTuple):
    """The kind of an option's value: its name in help texts, its unit, how it is parsed and shown; ``words``
    if only these are allowed. The flag of one that ``repeats`` is given once for each part of a list."""

    metavar: str
    unit: str
    parse: Callable[[Any], Any]
    show: Callable[[Any], str] = str
    words: tuple[str, ...] = ()
    repeats: bool = False


class Option(NamedTuple):
    """One row. ``default`` may be a function, if it depends on the machine; ``default_text`` then describes
    it. ``parts`` are those that take it: daemon, http, client (commands that use the service), stream (those
    that follow changes), store (those that work on the store's files)."""

    name: str
    kind: Kind
    default: Any
    consequence: str
    parts: tuple[str, ...]
    default_text: str = ""

    @property
    def flag(self) -> str:
        """The option on a command line."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """The option in the environment."""
        return PREFIX + self.name.upper().replace("-", "_")

    @property
    def field(self) -> str:
        """The option in a settings class: the name with its unit, where it is a duration."""
        return self.name.replace("-", "_") + ("_ms" if self.kind.unit == DURATION.unit else "")

    def default_value(self) -> Any:
        """The default on this machine, in base units."""
        return self.default() if callable(self.default) else self.default

    def shown_default(self) -> str:
        """The default as a person reads it."""
        return self.default_text or self.kind.show(self.default_value())


def _count(low: int, high: int = 2**31 - 1) -> Kind:
    def parse(given: Any) -> int:
        text = "" if isinstance(given, bool) else str(given).replace("_", "").strip()
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ValueError(f"{given!r} is not a whole number from {low} to {high}")
        return int(text)

    return Kind("N", "count", parse)


def _choice(*words: str) -> Kind:
    def parse(given: Any) -> str:
        if given not in words:
            raise ValueError(f"{given!r} is not one of {', '.join(words)}")
        return str(given)

    return Kind(f"[{'|'.join(words)}]", "word", parse, words=words)


def _size(low: int, high: int = 2**62) -> Kind:
    def parse(given: Any) -> int:
        size = option_values.parse_size(given)
        if not low <= size <= high:
            raise ValueError(
                f"{given!r} is outside {option_values.show_size(low)} to {option_values.show_size(high)}"
            )
        return size

    return Kind("SIZE", "bytes", parse, option_values.show_size)


def _parse_positive_duration(given: Any) -> int:
    ms = option_values.parse_duration(given)
    if ms == 0:
        raise ValueError(f"{given!r} must be greater than zero; write for example 500ms or 30s")
    return ms


DURATION = Kind("TIME", "duration", _parse_positive_duration, option_values.show_duration)
DURATION_OR_ZERO = Kind("TIME", "duration", option_values.parse_duration, option_values.show_duration)
FLAG = Kind("", "flag", option_values.parse_flag, lambda value: "yes" if value else "no")
_ADDRESS = Kind("HOST:PORT", "address", option_values.parse_address)
_ENDPOINT = Kind("ENDPOINT", "ZeroMQ address", option_values.parse_endpoint)
_URL = Kind("URL", "http(s) address", option_values.parse_url)
FOLDER = Kind("DIR", "folder", option_values.parse_path)
_FILE = Kind("FILE", "file", option_values.parse_path)
_FILE_OR_STDIN = Kind("FILE", "file", option_values.parse_path_or_stdin)
_ENGINE = Kind("URL", "address", option_values.parse_engine)
_ORIGINS = Kind("LIST", "origins", option_values.parse_origins, lambda value: ",".join(value) or "none")
_HOSTS = Kind("LIST", "host names", option_values.parse_hosts, lambda value: ",".join(value) or "none")

_PREFIXES = Kind(
    "PREFIX",
    "prefixes",
    option_values.parse_prefixes,
    lambda value: ",".join(value) or "none",
    repeats=True,
)


def _xdg(variable: str, fallback: str) -> str | None:
    # the XDG base directory specification: a relative path in the variable is to be ignored
    given = os.environ.get(variable, "")
    if given.startswith("/"):
        return given
    home = _home()
    return None if home is None else f"{home}/{fallback}"


def _home() -> str | None:
    if os.environ.get("HOME"):
        return os.environ["HOME"]
    from pwd import getpwuid

    try:
        return getpwuid(os.getuid()).pw_dir or None
    except KeyError:  # a container may run as a user that does not exist
        return None


def default_data() -> str | None:
    """The XDG data folder's part for kvstore; None for a user without a home."""
    folder = _xdg("XDG_DATA_HOME", ".local/share")
    return None if folder is None else f"{folder}/kvstore"


def default_config() -> str | None:
    """The file that is read when ``--config`` names none; it need not exist. None for a user without a
    home."""
    folder = _xdg("XDG_CONFIG_HOME", ".config")
    return None if folder is None else f"{folder}/kvstore/config.toml"


def default_workers() -> int:
    """One for each core this process may use, 4 at most: more of them would only wait for the daemon."""
    return min(4, len(os.sched_getaffinity(0)))


_MIB = 1024 * 1024
_DAEMON = ("daemon",)
_STORE = ("daemon", "store")
_HTTP = ("http",)
_SERVERS = ("daemon", "http")
_CLIENT = ("client",)

OPTIONS: dict[str, Option] = {
    row.name: row
    for row in (
        Option(
            "data",
            FOLDER,
            default_data,
            "The folder of the store. One daemon at a time may use it; it is created if missing.",
            _STORE,
            "$XDG_DATA_HOME/kvstore, else ~/.local/share/kvstore",
        ),
        Option(
            "engine",
            _ENGINE,
            "lmdb:",
            "What keeps the store: lmdb: a file in --data; etcd://HOST:PORT,HOST:PORT/PREFIX a cluster of "
            "etcd, of which --data then has a copy.",
            _DAEMON,
        ),
        Option(
            "sync",
            _choice("always", "interval", "none"),
            "always",
            "When a write is on disk: always: before it is acknowledged; interval (weaker): a crash of the "
            "machine loses up to --sync-interval of acknowledged writes; none (weakest): everything that the "
            "system had not written yet.",
            _DAEMON,
        ),
        Option(
            "sync-interval",
            DURATION,
            1000,
            "How often --sync interval writes to disk: the most that a crash of the machine loses.",
            _DAEMON,
        ),
        Option(
            "requests",
            _ENDPOINT,
            DEFAULT_REQUESTS,
            "The daemon's ZeroMQ address for requests. The daemon listens on it, the facade connects to it; "
            "with port 0 the system chooses one.",
            _SERVERS,
        ),
        Option(
            "changes",
            _ENDPOINT,
            DEFAULT_CHANGES,
            "The ZeroMQ address on which the daemon publishes every change, for the facade and for "
            "subscribers of your own.",
            _SERVERS,
        ),
        Option(
            "http",
            _ADDRESS,
            "127.0.0.1:5000",
            "The address of the HTTP facade; with port 0 the system chooses one.",
            _HTTP,
        ),
        Option(
            "workers",
            _count(1, 256),
            default_workers,
            "How many facade processes share the HTTP address. More use more cores; each has its own "
            "connections and streams.",
            _HTTP,
            "one for each core, 4 at most",
        ),
        Option(
            "max-value-bytes",
            _size(1, 2**30),
            limits.MAX_VALUE_BYTES,
            "The largest value; with a cluster 1 MiB at most. A larger one is refused with value_too_large.",
            _DAEMON,
        ),
        Option(
            "max-store-bytes",
            _size(_MIB, 2**46),
            2**40,
            "The maximum size of the store. Beyond it writes are refused with store_full, while reads and "
            "deletes still work. The file is sparse: no space is reserved.",
            _DAEMON,
        ),
        Option(
            "evict-prefix",
            _PREFIXES,
            (),
            "What the keys of a cache begin with; may be repeated. The records below all of these prefixes "
            "take at most --evict-bytes together: a write that needs more room evicts the oldest of them. "
            "Not with a cluster.",
            _DAEMON,
        ),
        Option(
            "evict-bytes",
            _size(1024, 2**46),
            None,
            "How many bytes the records below --evict-prefix take at most, together: half of "
            "--max-store-bytes, or less. Of each count its key, its value, its media type, and 92 bytes, and "
            "of one over 2 kB whole pages of 4 KiB.",
            _DAEMON,
            "none",
        ),
        Option(
            "max-batch-ops",
            _count(1, limits.MAX_OPS),
            limits.MAX_OPS,
            "The most operations in one independent batch.",
            _DAEMON,
        ),
        Option(
            "max-batch-bytes",
            _size(1024, 2**30),
            limits.MAX_REQUEST_BYTES,
            "The most bytes of values in one independent batch.",
            _DAEMON,
        ),
        Option(
            "max-atomic-ops",
            _count(1, limits.MAX_OPS),
            limits.MAX_ATOMIC_OPS,
            "The most operations in one atomic batch; with a cluster 100, and no more.",
            _DAEMON,
        ),
        Option(
            "max-atomic-bytes",
            _size(1024, 2**30),
            limits.MAX_ATOMIC_BYTES,
            "The most bytes of values in one atomic batch; with a cluster 1 MiB at most.",
            _DAEMON,
        ),
        Option(
            "retain-events",
            _count(1, 10**12),
            1_000_000,
            "How many events the log keeps. The strictest of the three retain options applies; a subscriber "
            "that was away for longer starts over with a snapshot.",
            _DAEMON,
        ),
        Option("retain-bytes", _size(1024), 2**30, "How many bytes of events the log keeps.", _DAEMON),
        Option("retain-age", DURATION, 7 * 86_400_000, "How long the log keeps an event.", _DAEMON),
        Option(
            "max-pending-requests",
            _count(1, 100_000),
            4096,
            "How many requests the daemon accepts before it answers the first of them; more wait at their "
            "senders. This many writes can share one commit, and reads wait only behind more.",
            _DAEMON,
        ),
        Option(
            "subscriber-queue",
            _count(1, 10**7),
            10_000,
            "How many messages are queued for a native subscriber that reads too slowly. More are dropped, "
            "and it fills the gap from the log.",
            _DAEMON,
        ),
        Option(
            "daemon-timeout",
            DURATION,
            5000,
            "How long an HTTP request waits for the daemon before it fails with timed_out.",
            _HTTP,
        ),
        Option(
            "max-body-bytes",
            _size(1024, 2**31),
            17 * _MIB,
            "The largest body of an HTTP request. A larger one is refused with request_too_large.",
            _HTTP,
        ),
        Option(
            "max-header-bytes",
            _size(1024, 16 * _MIB),
            64 * 1024,
            "The most bytes in the headers of an HTTP request. More are refused with headers_too_large.",
            _HTTP,
        ),
        Option(
            "max-connections",
            _count(1, 10**6),
            20_000,
            "The most HTTP connections of one worker, streams not counted.",
            _HTTP,
        ),
        Option(
            "max-streams",
            _count(0, 10**6),
            10_000,
            "The most open event streams of one worker. One more is refused with too_busy.",
            _HTTP,
        ),
        Option(
            "stream-buffer-bytes",
            _size(4096, 2**31),
            _MIB,
            "How many bytes are buffered for a stream that is read too slowly. Beyond that it is cut off, "
            "and resumes from the log.",
            _HTTP,
        ),
        Option(
            "max-held-bytes",
            _size(2**20, 2**40),
            256 * _MIB,
            "How many bytes of unread answers and incomplete requests one worker keeps for all its "
            "connections together. Beyond that it closes the connection that was idle for longest.",
            _HTTP,
        ),
        Option(
            "stream-heartbeat",
            DURATION,
            15_000,
            "How often a stream sends a heartbeat. Keep it below the idle timeout of proxies, and "
            "below a third of the clients' --stall-timeout.",
            _HTTP,
        ),
        Option(
            "cors-origins",
            _ORIGINS,
            (),
            "The web origins whose pages may use the service from a browser, each in full, separated by "
            "commas. Without any, CORS is off; * allows every page that a user opens.",
            _HTTP,
        ),
        Option(
            "allowed-hosts",
            _HOSTS,
            (),
            "The host names, without ports and separated by commas, that requests may have in Host, besides "
            "localhost and loopback addresses; * allows any. Others are refused with not_allowed, which "
            "protects against DNS rebinding. List those that a proxy passes on. Without any, a service "
            "that listens beyond loopback accepts every name.",
            _HTTP,
            "none on loopback, any beyond",
        ),
        Option(
            "access",
            _choice("auto", "required", "off"),
            "auto",
            "Whether everybody has to prove who they are, over HTTP by a token and over ZeroMQ by a key. "
            "auto: required once there is access.json in the data folder, --access-file or "
            "--admin-token-file (for a facade on its own: --facade-key-file), off until then. The first "
            "start with required makes an admin, whose token is in admin.token in the data folder.",
            _SERVERS,
        ),
        Option(
            "access-file",
            _FILE,
            None,
            "The file of identities, if it is not access.json in the data folder. The daemon only reads it, "
            "and takes each change of it within a second.",
            _DAEMON,
            "access.json in --data",
        ),
        Option(
            "admin-token-file",
            _FILE,
            None,
            "A file with a token of an admin, for as long as it is named here: a secret of systemd, Docker "
            "or Kubernetes. Nothing of it is written anywhere.",
            _DAEMON,
            "none",
        ),
        Option(
            "facade-key-file",
            _FILE,
            None,
            "The keys with which the facade proves to the daemon that it may ask for others: facade.key in "
            "the daemon's data folder, or a copy.",
            _HTTP,
            "with kvstore serve facade.key in --data, else none",
        ),
        Option(
            "plain-http",
            FLAG,
            False,
            "Let tokens cross a network over plain HTTP, where it can be trusted. The facade then listens "
            "beyond this machine without TLS of its own, since TLS ends in front of it; a command sends its "
            "token to an http:// address that is not of this machine.",
            ("http", "client"),
        ),
        Option(
            "tls-cert",
            _FILE,
            None,
            "The certificate (PEM, with its chain) with which the facade speaks HTTPS instead of HTTP. "
            "The file is looked at once a minute and at SIGHUP: a new one is taken without a restart.",
            _HTTP,
            "none: plain HTTP",
        ),
        Option(
            "tls-key",
            _FILE,
            None,
            "The certificate's private key (PEM), which must not be encrypted.",
            _HTTP,
            "the file of --tls-cert",
        ),
        Option(
            "allow-anonymous",
            FLAG,
            False,
            "Allow listening beyond this machine while access is off: anyone who reaches an address can "
            "read, change and delete everything. With access it changes nothing.",
            _SERVERS,
        ),
        Option(
            "access-log",
            _choice("off", "errors", "on"),
            "off",
            "Log a line for each HTTP request (on), or for each with a status of 400 and above (errors). "
            "Keys are logged, values never.",
            _HTTP,
        ),
        Option(
            "slow-request",
            DURATION_OR_ZERO,
            1000,
            "How long an HTTP request may take before it is logged as slow (at most one line in ten seconds; "
            "waits and streams do not count); 0: never.",
            _HTTP,
        ),
        Option(
            "slow-log",
            DURATION_OR_ZERO,
            100,
            "How long a request may take before it is kept for 'kvstore slow'. Each worker, and the daemon, "
            "keeps the last 128. 0: none is kept.",
            _SERVERS,
        ),
        Option(
            "slow-commit",
            DURATION_OR_ZERO,
            1000,
            "How long a commit may take before it is logged as slow (at most one line in ten seconds); 0: "
            "never.",
            _DAEMON,
        ),
        Option(
            "log-level",
            _choice("debug", "info", "warning", "error"),
            "info",
            "How much daemon and facade log on standard error. SIGUSR1 raises it by one step, SIGUSR2 resets "
            "it.",
            _SERVERS,
        ),
        Option(
            "log-format",
            _choice("auto", "text", "json"),
            "auto",
            "The format of the log. text: lines for people; json: one JSON object a line, for log "
            "collectors; auto: text on a terminal, JSON elsewhere.",
            _SERVERS,
        ),
        Option(
            "url", _URL, "http://127.0.0.1:5000", "The address of the service, for the commands.", _CLIENT
        ),
        Option(
            "ca-file",
            _FILE,
            None,
            "The CA certificates (PEM) to verify an https service with.",
            _CLIENT,
            "those of the system",
        ),
        Option(
            "token-file",
            _FILE_OR_STDIN,
            None,
            "The file with the token to send; - is standard input.",
            _CLIENT,
            "KVSTORE_TOKEN, else the login file",
        ),
        Option(
            "request-timeout",
            DURATION,
            10_000,
            "How long a command waits for its answer, retries included.",
            _CLIENT,
        ),
        Option(
            "retry-for",
            DURATION_OR_ZERO,
            None,
            "How long a command retries while the service is unavailable. Without it, a refused connection "
            "is reported at once, and other failures are retried a few times.",
            _CLIENT,
            "0s; export, import and backup 1m",
        ),
        Option(
            "stall-timeout",
            DURATION,
            45_000,
            "How long a stream may be silent before the command reconnects: three times the service's "
            "--stream-heartbeat.",
            ("stream",),
        ),
    )
}

SECRET_VARIABLES = (TOKEN_VARIABLE := "KVSTORE_TOKEN", LOGIN_FILE_VARIABLE)
"""Variables that are no options: a token has no place in a command line or a file of options, and the native
client reads the login file too."""

# not in the table: the file cannot name itself, so there is no key
CONFIG = Option(
    "config",
    _FILE,
    default_config,
    "The TOML file that options are read from.",
    ("daemon", "http", "client"),
    "$XDG_CONFIG_HOME/kvstore/config.toml, else ~/.config/kvstore/config.toml",
)


def options_of(*parts: str) -> list[Option]:
    """The table's rows that any of ``parts`` takes, in the table's order."""
    return [row for row in OPTIONS.values() if any(part in row.parts for part in parts)]
