"""What daemon and facade are started with, from the configuration."""

from __future__ import annotations

from kvstore_cli.config.option_values import is_local
from kvstore_cli.config.resolve import Configuration, ConfigurationError
from kvstore_daemon.settings import DaemonSettings
from kvstore_http.settings import HttpSettings


def daemon_settings(configuration: Configuration) -> DaemonSettings:
    """The daemon's settings; raises ConfigurationError if it would listen where it may not."""
    configuration.data_folder()
    refuse_open_doors(configuration, "requests", "changes")
    _refuse_same_address(configuration)
    _refuse_more("max-value-bytes", "max-batch-bytes", configuration)
    _refuse_more("max-atomic-bytes", "max-batch-bytes", configuration)
    _refuse_more("max-atomic-ops", "max-batch-ops", configuration)
    return DaemonSettings(**configuration.fields("daemon"))


def http_settings(configuration: Configuration) -> HttpSettings:
    """The facade's settings; raises ConfigurationError if it would listen where it may not."""
    refuse_open_doors(configuration, "http")
    return HttpSettings(**configuration.fields("http"))


def _refuse_same_address(configuration: Configuration) -> None:
    requests, changes = configuration["requests"], configuration["changes"]
    if requests == changes and not requests.endswith(":0"):
        raise ConfigurationError(f"--requests and --changes are both {requests}, and have to differ")


def _refuse_more(part: str, whole: str, configuration: Configuration) -> None:
    if configuration[part] > configuration[whole]:
        raise ConfigurationError(f"--{part} is above --{whole}, so that much could never be sent")


def refuse_open_doors(configuration: Configuration, *names: str) -> None:
    """Raise ConfigurationError if an address among ``names`` is open to other machines and nobody
    said that this is meant."""
    if configuration["allow-anonymous"]:
        return
    for name in names:
        if not is_local(configuration[name]):
            raise ConfigurationError(
                f"--{name} {configuration[name]} can be reached from other machines, and the service asks "
                "nobody who they are: anyone there could read, change and delete everything. "
                "If the network itself keeps strangers out, say so with --allow-anonymous "
                "(or KVSTORE_ALLOW_ANONYMOUS=1)"
            )
