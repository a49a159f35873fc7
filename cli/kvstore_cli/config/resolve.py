"""The value of each option, and where it is set: flag, then variable, then file, then default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore_cli.config.option_values import connectable, is_local, show_size
from kvstore_cli.config.options import (
    CONFIG,
    OPTIONS,
    PREFIX,
    SECRET_VARIABLES,
    TOKEN_VARIABLE,
    Option,
    options_of,
)
from kvstore_core.limits import MAX_CLUSTER_ATOMIC_OPS

if TYPE_CHECKING:
    from kvstore_daemon.settings import DaemonSettings
    from kvstore_http.settings import HttpSettings

_ADDRESS = r"(?:tcp|udp|sctp)://.+"
_OF_OTHERS = {
    # set by `subscribe --exec` for its command
    r"EVENT_[A-Z_]+": r"(?s:.*)",
    # set in containers by Kubernetes for a Service, and by Docker for a link, whose name begins with kvstore;
    # the values are compared too, since KVSTORE_PORT=8080 is meant for kvstore
    r"(?:\w+_)?SERVICE_HOST": r"[0-9a-fA-F.:]+",
    r"(?:\w+_)?SERVICE_PORT(?:_\w+)?": r"[0-9]+",
    r"(?:\w+_)?PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_START|_END)?)?": _ADDRESS,
    r"(?:\w+_)?PORT_[0-9]+_(?:TCP|UDP|SCTP)_(?:PROTO|ADDR|PORT)(?:_START|_END)?": r"[\w.:]+",
    r"(?:\w+_)?NAME": r"/[^/]+/[^/]+",
    r"(?:\w+_)?ENV_\w+": r"(?s:.*)",
}
"""Variables of other programs: the name after the prefix, and the value."""
_ACCESS_FILES = ("access.json", "access.key", "facade.key", "admin.token")
_LIKE = 0.6
"""The similarity (difflib's ratio) from which a name counts as a misspelt option."""


class ConfigurationError(Exception):
    """A value that cannot be used; the message names where it is set and what to write instead."""


class Setting(NamedTuple):
    """An option's value in base units, and where it came from: ``flag --x``, ``variable X``,
    ``file PATH`` or ``default``."""

    option: Option
    value: Any
    origin: str

    def shown(self) -> str:
        """The value in its written form; empty if there is none."""
        return "" if self.value is None else self.option.kind.show(self.value)


class Configuration:
    """The settings of some parts of the system. ``service_folder`` is the data folder that a service with
    the same file and environment has, None without a home folder; no command has to take ``--data`` for it.
    """

    def __init__(self, settings: Mapping[str, Setting], service_folder: str | None) -> None:
        self._settings = settings
        self.service_folder = service_folder

    def __getitem__(self, name: str) -> Any:
        """The value of the option ``name``, in base units."""
        return self._settings[name].value

    def settings(self) -> Iterable[Setting]:
        """All settings in the order of the table of options."""
        return self._settings.values()

    @property
    def asks_itself(self) -> bool:
        """Whether the commands ask the service of this very configuration, on this machine: the address
        follows from ``http`` and ``tls-cert``, and is a loopback one, for which no certificate is issued."""
        url = self._settings["url"]
        follows = url.origin.startswith(("http, ", "tls-cert, "))
        return follows and self["ca-file"] is None and is_local(url.value)

    def data_folder(self) -> str:
        """The folder of the store; ConfigurationError if it is not set and there is no home folder."""
        if self["data"] is None:
            raise ConfigurationError("there is no home folder to keep data in; name a folder with --data")
        return str(self["data"])

    def daemon_settings(self) -> DaemonSettings:
        """The daemon's settings, with ``access`` decided; raises ConfigurationError if it would listen where
        it may not."""
        from kvstore_daemon.settings import DaemonSettings

        access = self.access_of_daemon()
        self._refuse_public_addresses(access, "requests", "changes")
        requests = self["requests"]
        if requests == self["changes"] and not requests.endswith(":0"):
            raise ConfigurationError(f"--requests and --changes are both {requests}; they must differ")
        self._refuse_more("max-value-bytes", "max-batch-bytes")
        self._refuse_more("max-atomic-bytes", "max-batch-bytes")
        self._refuse_more("max-atomic-ops", "max-batch-ops")
        self._check_engine()
        self._check_eviction()
        return DaemonSettings(**{**self._fields("daemon"), "access": access})

    def http_settings(self) -> HttpSettings:
        """The settings of a facade on its own, with ``access`` decided; raises ConfigurationError if it
        would listen where it may not, or lacks its key."""
        key_file = self["facade-key-file"]
        if self["access"] == "required" and key_file is None:
            raise ConfigurationError(
                "with --access required the facade needs its key: name facade.key of the daemon's data "
                "folder, or a copy of it, with --facade-key-file"
            )
        has_none = self["access"] == "auto" and key_file is not None and _is_empty_login(key_file)
        return self._http_settings(None if self["access"] == "off" or has_none else key_file)

    def service_settings(self) -> tuple[DaemonSettings, HttpSettings]:
        """The settings of a daemon and of the facade beside it, which takes its key from the data folder."""
        daemon = self.daemon_settings()
        key_file = self["facade-key-file"] or f"{daemon.data}/facade.key"
        return daemon, self._http_settings(None if daemon.access == "off" else key_file)

    def _http_settings(self, key_file: str | None) -> HttpSettings:
        from kvstore_http.settings import HttpSettings

        access = "off" if key_file is None else "required"
        self._refuse_public_addresses(access, "http")
        if self["tls-key"] is not None and self["tls-cert"] is None:
            raise ConfigurationError("--tls-key is for a certificate; name it with --tls-cert")
        is_plain = self["tls-cert"] is None and not is_local(self["http"])
        if access == "required" and is_plain and not self["plain-http"]:
            raise ConfigurationError(
                f"--http {self['http']} can be reached from other machines, and tokens would cross the "
                "network for anyone on the way to read. Name a certificate with --tls-cert, or let a proxy "
                "in front end TLS, and say so with --plain-http (or KVSTORE_PLAIN_HTTP=1)"
            )
        return HttpSettings(**{**self._fields("http"), "access": access, "facade_key_file": key_file})

    def access_of_daemon(self) -> str:
        """``--access``, decided: ``auto`` is required once anything says who may come in, or that access was
        on before. A file that is lost opens nothing."""
        folder = self.data_folder()
        if self["access"] != "auto":
            return str(self["access"])
        is_on = (
            self["access-file"]
            or self["admin-token-file"]
            or any(os.path.lexists(f"{folder}/{name}") for name in _ACCESS_FILES)
        )
        return "required" if is_on else "off"

    def _fields(self, part: str) -> dict[str, Any]:
        return {row.field: self[row.name] for row in options_of(part)}

    def _check_engine(self) -> None:
        from kvstore_daemon.main import ENGINES

        engine = self["engine"]
        scheme, _, rest = engine.partition(":")
        if scheme == "etcd":
            self._check_etcd()
        elif scheme not in ENGINES or rest:
            raise ConfigurationError(
                f"--engine {engine!r} is not known; write lmdb:, or etcd://HOST:PORT,HOST:PORT/PREFIX"
            )

    def _check_eviction(self) -> None:
        prefixes, most, of_all = self["evict-prefix"], self["evict-bytes"], self["max-store-bytes"]
        if bool(prefixes) != (most is not None):
            given, missing = ("prefix", "bytes") if prefixes else ("bytes", "prefix")
            raise ConfigurationError(f"--evict-{given} needs --evict-{missing} beside it")
        if prefixes and most > of_all // 2:
            raise ConfigurationError(
                f"--evict-bytes {show_size(most)} is more than half of --max-store-bytes "
                f"{show_size(of_all)}: the log needs room, too; make one smaller, or the other larger"
            )

    def _check_etcd(self) -> None:
        from kvstore_core.errors import KvError
        from kvstore_daemon.storage.etcd_store.fit import checked_address

        limits = {
            name.replace("-", "_"): self[name]
            for name in ("max-value-bytes", "max-atomic-ops", "max-atomic-bytes")
        }
        try:
            checked_address(self["engine"], sync=self["sync"], evicts=bool(self["evict-prefix"]), **limits)
        except KvError as error:
            raise ConfigurationError(error.message) from error

    def _refuse_more(self, part: str, whole: str) -> None:
        if self[part] > self[whole]:
            raise ConfigurationError(f"--{part} is larger than --{whole}; it must not be")

    def _refuse_public_addresses(self, access: str, *names: str) -> None:
        """Refuse addresses that can be reached from other machines while access is off, unless that is
        allowed."""
        for name in names:
            if access == "off" and not self["allow-anonymous"] and not is_local(self[name]):
                key = ", and its key with --facade-key-file" if "data" not in self._settings else ""
                raise ConfigurationError(
                    f"--{name} {self[name]} can be reached from other machines, and access is off: anyone "
                    "there could read, change and delete everything. Turn it on with --access required"
                    f"{key}, or, if the network keeps others out, allow this with --allow-anonymous (or "
                    "KVSTORE_ALLOW_ANONYMOUS=1)"
                )


def resolve(flags: Mapping[str, Any], *parts: str, environ: Mapping[str, str] | None = None) -> Configuration:
    """The settings of the options of ``parts``.

    ``flags`` has the parsed values of the given flags, by option name. Unless ``url`` is set, it follows from
    ``http`` and ``tls-cert``, so that a configuration that moves the service moves its clients, too; and
    ``max-atomic-ops`` is no more than ``engine`` and ``max-batch-ops`` allow. Raises
    ConfigurationError for a value that cannot be read, for a ``KVSTORE_*`` variable that looks like a
    misspelt option, and for an unknown key in the file, also of other parts.
    """
    variables = os.environ if environ is None else environ
    check_variables(variables)
    path = _config_path(flags, variables)
    keys = {} if path is None else _read_file(*path)
    sources = _Sources(flags, variables, "" if path is None else path[0], keys)
    settings = {row.name: sources.setting(row) for row in options_of(*parts)}
    return Configuration(settings, sources.setting(OPTIONS["data"]).value)


def check_variables(variables: Mapping[str, str]) -> None:
    """Report ``KVSTORE_*`` variables that are not options and so have no effect: raise ConfigurationError for
    one that looks like a misspelt option, and print a warning for others, except :data:`_OF_OTHERS`."""
    known = [*(row.variable for row in (*OPTIONS.values(), CONFIG)), *SECRET_VARIABLES]
    for name, value in variables.items():
        if not name.startswith(PREFIX) or not value or name in known or _is_of_others(name, value):
            continue
        meant = _nearest(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], _LIKE)
        if meant is not None:
            raise ConfigurationError(f"the variable {name} is not an option; did you mean {PREFIX}{meant}?")
        _warn_of_unknown(name)


def _is_of_others(name: str, value: str) -> bool:
    rest = name.removeprefix(PREFIX)
    return any(
        re.fullmatch(names, rest) and re.fullmatch(values, value) for names, values in _OF_OTHERS.items()
    )


def _warn_of_unknown(name: str) -> None:
    from kvstore_cli.terminal import output

    if output.COMPLETE_VARIABLE not in os.environ:
        output.talk(f"the variable {name} is not an option and has no effect; {_ALL_OPTIONS}")


class _Sources(NamedTuple):
    """The sources of settings. ``path`` is the file with ``keys``."""

    flags: Mapping[str, Any]
    variables: Mapping[str, str]
    path: str
    keys: Mapping[str, Any]

    def setting(self, row: Option) -> Setting:
        """The option's value, or its default."""
        given = self._given(row)
        if given is None and row.name == "url":
            given = self._url_of_http()
        if given is None and row.name == "max-atomic-ops":
            given = self._atomic_ops_that_fit(row)
        if row.name == "token-file" and self.variables.get(TOKEN_VARIABLE) and _is_of_file(given):
            given = None  # a variable wins over the file
        return given or Setting(row, row.default_value(), "default")

    def _given(self, row: Option) -> Setting | None:
        if self.flags.get(row.name) is not None:
            return Setting(row, self.flags[row.name], f"flag {row.flag}")
        if self.variables.get(row.variable):
            value = _parsed(row, self.variables[row.variable], row.variable)
            return Setting(row, value, f"variable {row.variable}")
        if row.name in self.keys:
            value = _parsed(row, self.keys[row.name], f"{self.path}: {row.name}")
            return Setting(row, value, f"file {self.path}")
        return None

    def _atomic_ops_that_fit(self, row: Option) -> Setting | None:
        engine, batch = (self._given(OPTIONS[name]) for name in ("engine", "max-batch-ops"))
        if engine is not None and engine.value.startswith("etcd:"):
            return Setting(row, MAX_CLUSTER_ATOMIC_OPS, f"engine, {engine.origin}")
        if batch is not None and batch.value < row.default:
            return Setting(row, batch.value, f"max-batch-ops, {batch.origin}")
        return None

    def _url_of_http(self) -> Setting | None:
        http, certificate = (self._given(OPTIONS[name]) for name in ("http", "tls-cert"))
        given = http or certificate
        address = OPTIONS["http"].default if http is None else http.value
        # only the service knows which port the system chose for 0
        if given is None or address.endswith(":0"):
            return None
        scheme = "http" if certificate is None else "https"
        url = connectable(f"{scheme}://{address}")
        return Setting(OPTIONS["url"], url, f"{given.option.name}, {given.origin}")


def _is_empty_login(path: str) -> bool:
    """Whether ``path`` is a login file with nothing in it, as a service manager gives a facade where there is
    no key. What is wrong with any other file the facade says when it reads it."""
    from kvstore_core.access.login_file import read_entries
    from kvstore_core.errors import KvError

    try:
        return os.path.exists(path) and not read_entries(path)  # noqa: PTH110
    except KvError:
        return False


def _is_of_file(setting: Setting | None) -> bool:
    return setting is not None and setting.origin.startswith("file ")


def _parsed(row: Option, given: Any, where: str) -> Any:
    # TOML can contain one; paths, addresses and names cannot
    if isinstance(given, str) and "\0" in given:
        raise ConfigurationError(f"{where}: {given!r} contains a NUL; remove it")
    try:
        return row.kind.parse(given)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _config_path(flags: Mapping[str, Any], variables: Mapping[str, str]) -> tuple[str, bool] | None:
    """The file to read, and whether it must exist, because it was named. None without a home folder."""
    given = flags.get("config")
    if given is None and variables.get(CONFIG.variable):
        given = _parsed(CONFIG, variables[CONFIG.variable], CONFIG.variable)
    if given is not None:
        return given, True
    default = CONFIG.default_value()
    return None if default is None else (default, False)


def _read_file(path: str, must_exist: bool) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib adds nothing here
            text = file.read()
    except OSError as error:
        # nor need it be visible: in a container that runs as another user, HOME is often a folder that this
        # user may not enter
        if not must_exist and not os.path.exists(path):  # noqa: PTH110
            return {}
        if isinstance(error, FileNotFoundError):
            raise ConfigurationError(f"there is no configuration file {path}") from None
        raise ConfigurationError(f"the configuration file {path} cannot be read: {error.strerror}") from error
    return _parse_file(path, text)


def _parse_file(path: str, text: bytes) -> dict[str, Any]:
    import tomllib

    try:
        keys = tomllib.loads(text.decode())
    except ValueError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    for key, value in keys.items():
        if isinstance(value, dict):
            raise ConfigurationError(f"{path}: [{key}] is a section; the file has none, only keys")
        if key not in OPTIONS:
            meant = _nearest(key, list(OPTIONS), 0.5)
            hint = _ALL_OPTIONS if meant is None else f"did you mean {meant}?"
            raise ConfigurationError(f"{path}: {key} is not an option; {hint}")
    return keys


_ALL_OPTIONS = "'kvstore config show' lists them all"


def _nearest(name: str, known: list[str], ratio: float) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, known, n=1, cutoff=ratio)), None)
