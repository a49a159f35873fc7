"""Fixtures for all tests: servers as real processes, and how Hypothesis searches."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from support.etcd import EtcdCluster, fresh_prefix
from support.lagging import LaggingDaemon
from support.lengths import EXAMPLES, LONG_EXAMPLES, PROPERTY, Survived, summary
from support.servers import Daemon, Facade, Serve, Server, Service

STDERR_SHOWN_BYTES = 20_000
ENGINES = ("etcd", "lmdb")

# Examples take as long as the machine needs: a slow one is not a wrong one.
settings.register_profile(
    "local", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=EXAMPLES
)
settings.register_profile(
    "ci", settings.get_profile("local"), derandomize=False, print_blob=True, database=None
)
settings.register_profile("long", settings.get_profile("ci"), max_examples=LONG_EXAMPLES)


# A run in the background or under nohup is started with these ignored, and what the tests start would
# inherit that; a handler of Python's is not inherited.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that runs the same suites over another engine."""
    parser.addoption(
        "--engine",
        choices=ENGINES,
        help="the engine of every server that the tests start, and of the engines' own tests; without it "
        "servers have the default engine, and the engines' own tests run on each",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose Hypothesis' profile, and under CI a new seed for each run."""
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile("ci" if os.environ.get("CI") else "local")
    # Chosen here, before pytest-xdist hands the options to its workers, so that all share it.
    if os.environ.get("CI") and config.getoption("--hypothesis-seed", None) is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name the seed, so that a run can be repeated."""
    seed = config.getoption("--hypothesis-seed", None)
    return None if seed is None else f"to search the same examples again: --hypothesis-seed={seed}"


SERVERS = {"_starter", "_shared_starter", "_session_starter", "etcd", "start_etcd"}
"""Fixtures that every fixture which starts a server asks for."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the engines' own tests on each engine that they are for."""
    if "engine_kind" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--engine")
    is_for_lmdb_only = metafunc.definition.get_closest_marker("lmdb_only") is not None
    engines = [chosen] if chosen else ["lmdb"] if is_for_lmdb_only else ENGINES
    metafunc.parametrize("engine_kind", engines, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as ``quick`` what neither starts a server by a fixture nor says that it is ``slow``."""
    is_without_lmdb = config.getoption("--engine") not in (None, "lmdb")
    for item in items:
        of_lmdb = item.get_closest_marker("lmdb_only")
        if is_without_lmdb and of_lmdb is not None:
            (reason,) = of_lmdb.args
            item.add_marker(pytest.mark.skip(f"of LMDB only: {reason}"))
        fixtures = getattr(item, "fixturenames", ())
        needs_etcd = "etcd" in getattr(getattr(item, "callspec", None), "params", {}).values()
        if SERVERS.isdisjoint(fixtures) and not needs_etcd and item.get_closest_marker("slow") is None:
            item.add_marker("quick")
    # What takes long goes first, so that no worker of pytest-xdist is left alone with it at the end.
    items.sort(
        key=lambda item: (
            item.get_closest_marker("long") is None,
            item.get_closest_marker("quick") is not None,
        )
    )


_servers = pytest.StashKey[list[Server]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the servers of the test wrote."""
    report = yield
    if report.failed:
        for server in itertools.chain.from_iterable(
            node.stash.get(_servers, ()) for node in item.listchain()
        ):
            title = f"stderr of kvstore {server.name} in {server.folder}"
            report.sections.append((title, server.stderr[-STDERR_SHOWN_BYTES:]))
    return report


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Survived:
    """``survived(kills=1, writes=200)``: count for the summary at the end of the run what this test did to
    the service."""
    counted: dict[str, int] = {}

    def count(**more: int) -> None:
        for what, number in more.items():
            counted[what] = counted.get(what, 0) + number

    # a property travels with the report, from a worker of pytest-xdist as well
    request.node.user_properties.append((PROPERTY, counted))
    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was survived by the tests that passed."""
    reports = terminalreporter.getreports("passed")
    survived = summary(found for report in reports for found in report.user_properties)
    if survived:
        terminalreporter.write_sep("=", "survived")
        terminalreporter.write_line(survived)


class _Starter:
    """Starts servers for a test or a module, each in a folder of its own, and stops them all."""

    def __init__(self, node: pytest.Collector | pytest.Item, folder: Path) -> None:
        self._servers = node.stash.setdefault(_servers, [])
        self._folder = folder
        self._number = itertools.count()

    def start_facade(self, daemon: Any, environment: dict[str, str] | None = None, **options: Any) -> Facade:
        endpoints = {"requests": daemon.requests, "changes": daemon.changes, "workers": 1}
        facade: Facade = self.start(Facade, {**endpoints, **options}, environment)
        return facade

    def start(self, kind: type[Any], options: dict[str, Any], environment: dict[str, str] | None) -> Any:
        folder = self._folder / f"{kind.name}{next(self._number)}"
        folder.mkdir()
        server = kind(folder, options, environment)
        self._servers.append(server)
        return server.start()

    def stop_all(self) -> None:
        failures: list[Exception] = []
        for server in reversed(self._servers):
            try:
                server.stop()
            except AssertionError as failure:
                failures.append(failure)
        if failures:
            raise ExceptionGroup("servers did not stop as they must", failures)


@pytest.fixture
def _starter(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Starter]:
    starter = _Starter(request.node, tmp_path)
    yield starter
    starter.stop_all()


@pytest.fixture
def start_daemon(_starter: _Starter) -> Callable[..., Daemon]:
    """``start_daemon(retain_events=10, environment={...})``: a ready daemon with those flags."""
    return lambda environment=None, **options: _starter.start(Daemon, options, environment)


@pytest.fixture
def start_facade(_starter: _Starter) -> Callable[..., Facade]:
    """``start_facade(daemon, workers=2)``: a ready facade in front of ``daemon`` (or of whatever has
    ``requests`` and ``changes``)."""
    return _starter.start_facade


@pytest.fixture
def start_serve(_starter: _Starter) -> Callable[..., Serve]:
    """``start_serve(workers=1)``: a ready ``kvstore serve``."""
    return lambda environment=None, **options: _starter.start(Serve, options, environment)


@pytest.fixture
def start_lagging(_starter: _Starter) -> Callable[..., LaggingDaemon]:
    """``start_lagging()``: a ready daemon whose reads have to catch up when the test says so."""
    return lambda environment=None, **options: _starter.start(LaggingDaemon, options, environment)


@pytest.fixture
def daemon(start_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon with an empty store and the default options."""
    return start_daemon()


@pytest.fixture
def facade(daemon: Daemon, start_facade: Callable[..., Facade]) -> Facade:
    """A facade with one worker in front of ``daemon``."""
    return start_facade(daemon)


@pytest.fixture
def service(daemon: Daemon, facade: Facade) -> Service:
    """A daemon and a facade with one worker."""
    return Service(daemon, facade)


@pytest.fixture(scope="module")
def _shared_starter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_Starter]:
    starter = _Starter(request.node, tmp_path_factory.mktemp("shared"))
    yield starter
    starter.stop_all()


@pytest.fixture(scope="module")
def shared_daemon(_shared_starter: _Starter) -> Daemon:
    """A daemon for all tests of a module that keep to keys of their own and stop nothing."""
    daemon: Daemon = _shared_starter.start(Daemon, {}, None)
    return daemon


@pytest.fixture(scope="module")
def shared_service(shared_daemon: Daemon, _shared_starter: _Starter) -> Service:
    """The shared daemon and a facade, for tests that do the same."""
    return Service(shared_daemon, _shared_starter.start_facade(shared_daemon))


@pytest.fixture(scope="session")
def _session_starter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_Starter]:
    starter = _Starter(request.node, tmp_path_factory.mktemp("session"))
    yield starter
    starter.stop_all()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One member of etcd for all tests that keep to a prefix of their own and stop nothing."""
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), is_durable=False) as cluster:
        yield cluster


@pytest.fixture(scope="session", autouse=True)
def _stores(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have every daemon that is started keep its store where ``--engine`` says."""
    if request.config.getoption("--engine") == "etcd":
        cluster: EtcdCluster = request.getfixturevalue("etcd")
        Daemon.engine_address = cluster.store_address
    yield
    Daemon.engine_address = None


@pytest.fixture
def etcd_address(etcd: EtcdCluster) -> str:
    """What ``--engine`` takes for an empty store in the shared etcd."""
    return etcd.address(fresh_prefix())


@pytest.fixture
def start_etcd(tmp_path: Path) -> Iterator[Callable[..., EtcdCluster]]:
    """``start_etcd(3, flags=[...])``: a cluster of the test's own, stopped after it."""
    clusters: list[EtcdCluster] = []

    def start(size: int = 1, **options: Any) -> EtcdCluster:
        clusters.append(EtcdCluster(tmp_path / f"cluster{len(clusters)}", size, **options))
        return clusters[-1].start()

    yield start
    for cluster in clusters:
        cluster.stop()
