"""The settings of daemon and facade, from the configuration."""

from __future__ import annotations

from kvstore_cli.config.option_values import is_local
from kvstore_cli.config.resolve import Configuration, ConfigurationError
from kvstore_daemon.settings import DaemonSettings
from kvstore_http.settings import HttpSettings


def daemon_settings(configuration: Configuration) -> DaemonSettings:
    """The daemon's settings; raises ConfigurationError if it would listen where it may not."""
    configuration.data_folder()
    refuse_public_addresses(configuration, "requests", "changes")
    _refuse_same_address(configuration)
    _refuse_more("max-value-bytes", "max-batch-bytes", configuration)
    _refuse_more("max-atomic-bytes", "max-batch-bytes", configuration)
    _refuse_more("max-atomic-ops", "max-batch-ops", configuration)
    return DaemonSettings(**configuration.fields("daemon"))


def http_settings(configuration: Configuration) -> HttpSettings:
    """The facade's settings; raises ConfigurationError if it would listen where it may not."""
    refuse_public_addresses(configuration, "http")
    return HttpSettings(**configuration.fields("http"))


def _refuse_same_address(configuration: Configuration) -> None:
    requests, changes = configuration["requests"], configuration["changes"]
    if requests == changes and not requests.endswith(":0"):
        raise ConfigurationError(f"--requests and --changes are both {requests}; they must differ")


def _refuse_more(part: str, whole: str, configuration: Configuration) -> None:
    if configuration[part] > configuration[whole]:
        raise ConfigurationError(f"--{part} is larger than --{whole}; it must not be")


def refuse_public_addresses(configuration: Configuration, *names: str) -> None:
    """Raise ConfigurationError if one of the addresses ``names`` can be reached from other machines, unless
    that is allowed."""
    if configuration["allow-anonymous"]:
        return
    for name in names:
        if not is_local(configuration[name]):
            raise ConfigurationError(
                f"--{name} {configuration[name]} can be reached from other machines, and the service has no "
                "authentication: anyone there could read, change and delete everything. If the network "
                "keeps others out, allow it with --allow-anonymous (or KVSTORE_ALLOW_ANONYMOUS=1)"
            )
