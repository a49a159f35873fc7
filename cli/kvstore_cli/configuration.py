"""What each option is set to, and by whom: flag, then variable, then file, then default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from kvstore_cli.options import CONFIG, OPTIONS, PREFIX, Option, options_of

# Not options, yet rightfully in our environment: what `subscribe --exec` tells its command, and what
# Kubernetes sets in every container beside a Service that is called kvstore.
_OF_OTHERS = r"KVSTORE_(?:EVENT_.*|SERVICE_(?:HOST|PORT(?:_.*)?)|PORT(?:_.*)?)"


class ConfigurationError(Exception):
    """An option that cannot be used; the message names where it was set and what to write instead."""


class Setting(NamedTuple):
    """An option's value in base units, and where it came from: ``flag --x``, ``variable X``,
    ``file PATH`` or ``default``."""

    option: Option
    value: Any
    origin: str

    def shown(self) -> str:
        """The value as a person writes it; empty where there is none."""
        return "" if self.value is None else self.option.kind.show(self.value)


class Configuration:
    """The settings of some parts of the system, resolved once and then fixed."""

    def __init__(self, settings: Mapping[str, Setting]) -> None:
        self._settings = settings

    def __getitem__(self, name: str) -> Any:
        """The value of the option ``name``, in base units."""
        return self._settings[name].value

    def settings(self) -> Iterable[Setting]:
        """All settings in the order of the table of options."""
        return self._settings.values()

    def fields(self, part: str) -> dict[str, Any]:
        """The values for the settings class of ``part``, by field name."""
        return {row.field: self[row.name] for row in options_of(part)}


def resolve(flags: Mapping[str, Any], *parts: str, environ: Mapping[str, str] | None = None) -> Configuration:
    """What the options of ``parts`` are set to.

    ``flags`` holds the parsed values of the flags that were given, by option name. Raises
    ConfigurationError for a value that cannot be read, and for any ``KVSTORE_*`` variable or key of
    the file that is not an option, also one of another part.
    """
    variables = os.environ if environ is None else environ
    refuse_unknown_variables(variables)
    path, named = _config_path(flags, variables)
    keys = _read_file(path, named)
    rows = options_of(*parts)
    return Configuration({row.name: _resolve_one(row, flags, variables, path, keys) for row in rows})


def refuse_unknown_variables(variables: Iterable[str]) -> None:
    """Raise ConfigurationError for a ``KVSTORE_*`` variable that is no option: a misspelt one would
    otherwise be without effect, and nobody would know."""
    known = [row.variable for row in (*OPTIONS.values(), CONFIG)]
    for name in variables:
        if name.startswith(PREFIX) and name not in known and not re.fullmatch(_OF_OTHERS, name):
            raise ConfigurationError(f"the variable {name} is not an option{_nearest(name, known)}")


def _resolve_one(
    row: Option, flags: Mapping[str, Any], variables: Mapping[str, str], path: str, keys: Mapping[str, Any]
) -> Setting:
    if flags.get(row.name) is not None:
        return Setting(row, flags[row.name], f"flag {row.flag}")
    if variables.get(row.variable):
        return Setting(row, _parsed(row, variables[row.variable], row.variable), f"variable {row.variable}")
    if row.name in keys:
        return Setting(row, _parsed(row, keys[row.name], f"{path}: {row.name}"), f"file {path}")
    return Setting(row, row.default_value(), "default")


def _parsed(row: Option, given: Any, where: str) -> Any:
    try:
        return row.kind.parse(given)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _config_path(flags: Mapping[str, Any], variables: Mapping[str, str]) -> tuple[str, bool]:
    """The file to read, and whether somebody named it: then it has to exist."""
    given = flags.get("config") or variables.get(CONFIG.variable)
    return (CONFIG.kind.parse(given), True) if given else (CONFIG.default_value(), False)


def _read_file(path: str, must_exist: bool) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib adds nothing here
            text = file.read()
    except FileNotFoundError:
        if must_exist:
            raise ConfigurationError(f"there is no configuration file {path}") from None
        return {}
    except OSError as error:
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
            raise ConfigurationError(f"{path}: the file has no sections, and [{key}] is one")
        if key not in OPTIONS:
            raise ConfigurationError(f"{path}: {key} is not an option{_nearest(key, list(OPTIONS))}")
    return keys


def _nearest(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else "; 'kvstore config show' lists them all"
