"""kvstore.js in tabs of a real Chromium: one stream for all, whatever happens to the one that has it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from kvstore_client import Client
from support.browser import PROCESS_FOR_EACH_TAB, Browser, open_browser
from support.lengths import Survived, times
from support.metrics import scrape
from support.protected import Protected
from support.servers import Daemon, Facade, Service, wait_until
from support.session import Session, call
from support.tabs import Tab

TABS = times(8, full=12)
"""More than a browser has connections to one host, which are six."""
KILLS = times(6, full=100)

pytestmark = pytest.mark.slow

WATCH = """
const {{ connect }} = await import("/ui/kvstore.js");
window.kv = connect({options});
window.log = []; // what came, in order: op and revision, and the index in it
window.states = [];
window.failure = "";
window.watching = async (options) => {{
  try {{
    for await (const item of kv.watch({{ ...options, onState: (state) => states.push(state) }})) {{
      log.push([item.op, item.revision ?? 0, item.index ?? 0, item.key ?? "", item.value ?? ""]);
    }}
  }} catch (error) {{
    failure = `${{error.code}}: ${{error.message}}`;
  }}
}};
watching({watch});
await new Promise((done) => navigator.locks.request("tab {number}", () => (done(), new Promise(() => {{}}))));
"""
"""Follow a prefix, and hold a lock by which the tab is found among those who hold locks."""

_numbers = itertools.count()

Event = tuple[str, int, int, str, str]
"""Op, revision, index, key, value."""

Write = tuple[int, int, str, str]
"""Revision, index, key, value."""


class WatchingTab(Tab):
    """A tab that follows, and knows what it has seen."""

    def __init__(self, browser: Browser, url: str, watch: dict[str, Any], options: str = "") -> None:
        super().__init__(browser, f"{url}/v1/status")
        self.number = next(_numbers)
        self.run(WATCH.format(number=self.number, watch=json.dumps(watch), options=options))

    @property
    def log(self) -> list[Event]:
        """What came."""
        return [tuple(each) for each in json.loads(self.run("JSON.stringify(log)"))]

    @property
    def failure(self) -> str:
        """What ended the watch; empty while it goes on."""
        return str(self.run("failure"))

    def wait_for_sync(self) -> None:
        """Wait until the watch has begun."""
        wait_until(lambda: self.run("log.some(([op]) => op === 'sync')"), what="the watch has begun")


class Fleet:
    """Tabs of one browser on one service."""

    def __init__(self, browser: Browser, url: str, watch: dict[str, Any], options: str = "") -> None:
        self.browser = browser
        self.url = url
        self.watch = watch
        self.options = options
        self.tabs: list[WatchingTab] = []

    def add(self, count: int = 1) -> None:
        """Open further tabs, each of which has begun."""
        new = [WatchingTab(self.browser, self.url, self.watch, self.options) for _ in range(count)]
        for tab in new:
            tab.wait_for_sync()
        self.tabs += new

    def locks(self) -> list[dict[str, str]]:
        """The locks that are held."""
        held: list[dict[str, str]] = json.loads(
            self.tabs[-1].run("JSON.stringify((await navigator.locks.query()).held)")
        )
        return held

    def leader(self) -> WatchingTab | None:
        """The tab that leads; None if none does now."""
        locks = self.locks()
        leaders = {each["clientId"] for each in locks if each["name"].startswith("lead kvstore:")}
        numbers = {each["name"] for each in locks if each["clientId"] in leaders}
        return next((tab for tab in self.tabs if f"tab {tab.number}" in numbers), None)

    def wait_for_leader(self) -> WatchingTab:
        """The tab that leads, once one does."""
        found = wait_until(self.leader, what="a tab leads")
        assert found is not None
        return found

    def streams(self) -> int:
        """How many streams the service has open."""
        return int(scrape(self.url).value("kvstore_http_streams"))

    def wait_for_one_stream(self) -> None:
        """Wait until all tabs are at one stream, as they are but for moments."""
        wait_until(lambda: self.streams() == 1, what="one stream", timeout=40)

    def remove(self, tab: WatchingTab) -> None:
        """Forget a tab that is gone."""
        self.tabs.remove(tab)


class Writer:
    """Writes below a prefix at each interval until it is told to stop, and knows what was acknowledged."""

    def __init__(self, url: str, prefix: str, every: float = 0.05) -> None:
        self._url = url
        self._prefix = prefix
        self._every = every
        self._stop = threading.Event()
        self.written: list[Write] = []
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        with closing(Session(self._url)) as session:
            for number in itertools.count():
                if self._stop.wait(self._every):
                    return
                ops = [
                    {"op": "put", "key": f"{self._prefix}{number % 50}/{part}", "value": f"{number}"}
                    for part in range(1 + number % 3)
                ]
                answer = session.post("/v1/batch", {"atomic": True, "ops": ops})
                assert answer.status == 200, answer.body
                self.written += [
                    (result["revision"], index, op["key"], op["value"])
                    for index, (op, result) in enumerate(zip(ops, answer.json["results"], strict=True))
                ]

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def check(log: list[Event], written: list[Write]) -> int:
    """What a tab has seen is what was written since it began, once and in order; returns how much that is."""
    begin = next(revision for op, revision, *_ in log if op == "sync")
    seen = [tuple(event) for op, *event in log if op == "put"]
    last = seen[-1][0] if seen else 0
    expected = [each for each in written if begin < each[0] <= last]
    lost, twice = set(expected) - set(seen), len(seen) - len(set(seen))
    assert (len(lost), twice) == (0, 0), f"lost {sorted(lost)[:5]}, twice {twice}"
    assert seen == expected
    return len(seen)


def assert_exact(tab: WatchingTab, written: list[Write]) -> int:
    """The tab sees all that was written since it began, once and in order; returns how much that is."""
    last = written[-1][0]

    def is_there() -> bool:
        return bool(tab.run(f"log.some(([, revision]) => revision >= {last})"))

    wait_until(
        is_there, what=f"revision {last} in a tab that ends with {tab.log[-3:]} {tab.failure}", timeout=60
    )
    return check(tab.log, written)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser") / "profile", PROCESS_FOR_EACH_TAB) as browser:
        yield browser


@pytest.fixture
def start_fleet(browser: Browser, service: Service) -> Iterator[Callable[..., Fleet]]:
    fleets: list[Fleet] = []

    def start(tabs: int = 3, options: str = "", **watch: Any) -> Fleet:
        fleet = Fleet(browser, service.url, watch, options)
        fleets.append(fleet)
        fleet.add(tabs)
        return fleet

    yield start
    for fleet in fleets:
        for tab in fleet.tabs:
            tab.close()
    browser.run("0")


ENDS = ("kill", "close", "crash")

UNLIMITED = {"downloadThroughput": -1, "uploadThroughput": -1}


def end(tab: WatchingTab, how: str) -> None:
    if how == "kill":
        tab.kill()
    elif how == "close":
        tab.close()
    else:
        tab.crash()


@pytest.mark.torture
@pytest.mark.timeout(120 + 20 * KILLS)
def test_many_tabs_have_one_stream_and_lose_nothing_whatever_ends_the_one_that_has_it(
    start_fleet: Callable[..., Fleet], survived: Survived
) -> None:
    lead_and_lose(start_fleet(TABS, prefix="t/"), KILLS, survived)


def lead_and_lose(fleet: Fleet, kills: int, survived: Survived) -> None:
    """End the leading tab again and again while there are writes; each is replaced by a new one."""
    fleet.wait_for_one_stream()
    hand_overs: list[float] = []
    ended: list[list[Event]] = []
    with Writer(fleet.url, "t/", every=0.002) as writer:  # so often that each moment of a hand-over has some
        for number in range(kills):
            leader = fleet.wait_for_leader()
            fleet.remove(leader)
            ended.append(leader.log)
            end(leader, ENDS[number % len(ENDS)])
            hand_overs.append(time_to_next(fleet, writer))
            fleet.add()
        peak = fleet.streams()
        fleet.wait_for_one_stream()
    counts = [assert_exact(tab, writer.written) for tab in fleet.tabs]
    before = [check(log, writer.written) for log in ended]
    assert min(counts) > 0
    fleet.wait_for_one_stream()
    hand_overs.sort()
    print(
        f"{len(fleet.tabs)} tabs, {kills} leading tabs ended, {len(writer.written)} events written; "
        f"{min(counts)} to {max(counts)} seen by a tab at the end, {sum(counts)} by all of them, "
        f"{sum(before)} by those that were ended; none lost, none twice; "
        f"1 stream, {peak} right after the last new tab; after a leader's end the next event came in "
        f"{hand_overs[len(hand_overs) // 2] * 1000:.0f} ms (median), {hand_overs[-1] * 1000:.0f} ms (most)"
    )
    survived(leading_tabs_ended=kills, events_seen_by_tabs=sum(counts) + sum(before))


def time_to_next(fleet: Fleet, writer: Writer) -> float:
    """The seconds until a tab sees an event that was written after now."""
    began = time.monotonic()
    wait_until(lambda: writer.written, what="a write")
    tab, last = fleet.tabs[0], writer.written[-1][0]
    wait_until(lambda: writer.written[-1][0] > last, what="another write", every=0.002)
    wait_until(lambda: tab.run(f"(log.at(-1)?.[1] ?? 0) > {last}"), what="an event after it", every=0.002)
    return time.monotonic() - began


# ── what else can happen ─────────────────────────────────────────────────────────────────────────


def test_a_stopped_leader_is_replaced_and_goes_on_exactly(start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet(4, prefix="t/")
    fleet.wait_for_one_stream()
    with Writer(fleet.url, "t/") as writer:
        stopped = fleet.wait_for_leader()
        fleet.remove(stopped)
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            wait_until(fleet.leader, what="another tab leads", timeout=60, every=0.1)
            time_to_next(fleet, writer)
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
        fleet.tabs.insert(0, stopped)
        time_to_next(fleet, writer)
    for tab in fleet.tabs:
        assert_exact(tab, writer.written)
    fleet.wait_for_one_stream()


def test_a_leader_that_is_offline_makes_room_for_a_tab_that_is_not_and_goes_on_exactly(
    service: Service, start_fleet: Callable[..., Fleet]
) -> None:
    fleet = start_fleet(3, prefix="t/")
    fleet.wait_for_one_stream()
    leader = fleet.wait_for_leader()
    others = [tab for tab in fleet.tabs if tab is not leader]
    leader.command("Network.enable")
    leader.command("Network.emulateNetworkConditions", offline=True, latency=0, **UNLIMITED)
    service.facade.restart()
    wait_until(lambda: fleet.leader() in others, what="another tab leads", timeout=60, every=0.1)
    with Writer(fleet.url, "t/") as writer:
        fleet.tabs = [*others, leader]
        time_to_next(fleet, writer)
    for tab in fleet.tabs:
        assert_exact(tab, writer.written)
        assert tab.run("states.at(-1)") == "live"
    fleet.wait_for_one_stream()
    assert fleet.wait_for_leader() in others


def test_a_stopped_follower_holds_up_nobody_and_misses_nothing(start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet(4, prefix="t/")
    leader = fleet.wait_for_leader()
    stopped = next(tab for tab in fleet.tabs if tab is not leader)
    fleet.remove(stopped)
    with Writer(fleet.url, "t/") as writer:
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            fleet.remove(leader)
            leader.kill()
            time_to_next(fleet, writer)
            fleet.add()
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
    fleet.tabs.append(stopped)
    for tab in fleet.tabs:
        assert_exact(tab, writer.written)
    fleet.wait_for_one_stream()


def test_what_does_not_go_on_from_where_a_tab_is_is_not_taken(start_fleet: Callable[..., Fleet]) -> None:
    """As from a leader that was stopped for long: a gap, another store, other keys."""
    fleet = start_fleet(3, prefix="t/")
    fleet.wait_for_one_stream()
    (name,) = {each["name"][5:] for each in fleet.locks() if each["name"].startswith("lead kvstore:")}
    say = f"""
      const {{ revision, epoch }} = await (await fetch("/v1/status")).json();
      const channel = new BroadcastChannel({json.dumps(name)});
      const wish = {{ prefixes: ["t/"], keys: [], values: true, prev: false }};
      const say = (from, to, given, stream) => {{
        const event = {{ event: "put", op: "put", key: "t/false", revision: parseInt(to), index: 0 }};
        const facts = {{ from, to, events: [event] }};
        channel.postMessage({{ facts, stream, wish: {{ ...wish, ...given }} }});
      }};
      say(`${{revision + 5}}-${{epoch}}`, `${{revision + 9}}-${{epoch}}`, {{}}, "gap");
      say(`${{revision}}-0123456789abcdef`, `${{revision + 9}}-0123456789abcdef`, {{}}, "store");
      say(`${{revision}}-${{epoch}}`, `${{revision + 9}}-${{epoch}}`, {{ prefixes: ["t/f"] }}, "keys");
      say(`${{revision}}-${{epoch}}`, `${{revision + 9}}-${{epoch}}`, {{ values: false }}, "values");
      0"""
    fleet.tabs[0].run(say)
    with Writer(fleet.url, "t/") as writer:
        time_to_next(fleet, writer)
        fleet.tabs[1].run(say)
        time_to_next(fleet, writer)
    for tab in fleet.tabs:
        assert_exact(tab, writer.written)
    fleet.wait_for_one_stream()


def test_a_tab_that_takes_nothing_holds_up_nobody_and_misses_nothing(
    service: Service, start_fleet: Callable[..., Fleet]
) -> None:
    fleet = start_fleet(2, prefix="t/")
    slow = fleet.tabs[0]
    slow.run("window.held = kv.watch({ prefix: 't/' }); window.heldLog = []; (await held.next()).value.op")
    fleet.wait_for_one_stream()
    with closing(Session(service.url)) as session:
        revisions = [
            session.put(f"/v1/kv/t/{number}", b"x" * 1_000_000).json["revision"] for number in range(12)
        ]
    others = "log.filter(([op]) => op === 'put').length"
    wait_until(lambda: fleet.tabs[1].run(others) == len(revisions), what="the other tab has all")
    slow.run(
        "(async () => {for await (const {op, revision} of held) if (op === 'put') heldLog.push(revision)})();"
        "0"
    )
    wait_until(lambda: len(slow.run("heldLog")) == len(revisions), what="the slow one has all")
    assert slow.run("heldLog") == revisions
    fleet.wait_for_one_stream()


def test_workers_share_the_stream_too(service: Service, start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet(2, prefix="t/")
    code = f"""
      const {{ connect }} = await import("{service.url}/ui/kvstore.js");
      for await (const {{ op, revision, index, key, value }} of connect().watch({{ prefix: "t/" }})) {{
        postMessage([op, revision ?? 0, index ?? 0, key ?? "", value ?? ""]);
      }}"""
    fleet.tabs[0].run(
        f"const code = new Blob([{json.dumps(code)}], {{ type: 'text/javascript' }});"
        "window.worker = new Worker(URL.createObjectURL(code), { type: 'module' });"
        "window.workerLog = []; worker.onmessage = ({ data }) => workerLog.push(data); 0"
    )
    wait_until(lambda: fleet.tabs[0].run("workerLog.length"), what="the worker has begun")
    fleet.wait_for_one_stream()
    with Writer(service.url, "t/") as writer:
        fleet.tabs.pop().kill()
        time_to_next(fleet, writer)
    assert_exact(fleet.tabs[0], writer.written)
    last = writer.written[-1][0]
    told = f"workerLog.some(([, revision]) => revision >= {last})"
    wait_until(lambda: fleet.tabs[0].run(told), what="the worker has all")
    check([tuple(each) for each in fleet.tabs[0].run("workerLog")], writer.written)


def test_where_tabs_cannot_find_each_other_each_has_its_own_stream(
    browser: Browser, start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    """Plain http beyond this machine has neither locks nor digests."""
    daemon = start_daemon(access="required")
    key = str(daemon.data / "facade.key")
    facade = start_facade(daemon, plain_http=True, http="0.0.0.0:0", facade_key_file=key)
    url = f"http://kv.example:{facade.url.rpartition(':')[2]}"
    token = (daemon.data / "admin.token").read_text().strip()
    tabs = [Tab(browser, f"{url}/livez") for _ in range(2)]
    for tab in tabs:
        assert tab.run("isSecureContext || 'locks' in navigator") is False
        tab.run(
            "const { connect } = await import('/ui/kvstore.js');"
            f"window.kv = connect({{ token: '{token}' }});"
            "window.log = []; (async () => {for await (const {op, key} of kv.watch({prefix: 't/'}))"
            " log.push([op, key])})(); 0"
        )
    for tab in tabs:
        wait_until(lambda tab=tab: tab.run("log.length"), what="the watch has begun")
    tabs[0].run("await kv.put('t/a', 'x'); 0")
    for tab in tabs:
        wait_until(lambda tab=tab: tab.run("log.length") == 2, what="the change")
        assert tab.run("log")[1] == ["put", "t/a"]
        tab.close()


def test_tabs_that_the_browser_freezes_let_go_of_all_and_resume(start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet(3, prefix="t/")
    fleet.wait_for_one_stream()
    leader = fleet.wait_for_leader()
    follower = next(tab for tab in fleet.tabs if tab is not leader)
    with Writer(fleet.url, "t/") as writer:
        for tab in (leader, follower):
            tab.command("Page.setWebLifecycleState", state="frozen")
            fleet.remove(tab)
        wait_until(fleet.leader, what="the tab that is left leads")
        time_to_next(fleet, writer)
        names = json.dumps(fleet.locks())
        assert names.count('"lead kvstore:') == 1
        assert names.count('"kvstore:') == 1
        for tab in (leader, follower):
            tab.command("Page.setWebLifecycleState", state="active")
        fleet.tabs += [leader, follower]
        time_to_next(fleet, writer)
    for tab in fleet.tabs:
        assert_exact(tab, writer.written)
    fleet.wait_for_one_stream()


def test_tabs_go_on_over_restarts_of_facade_and_daemon(
    service: Service, start_fleet: Callable[..., Fleet]
) -> None:
    fleet = start_fleet(4, prefix="t/")
    written: list[Write] = []

    def write_some() -> None:
        with Writer(service.url, "t/") as writer:
            wait_until(lambda: len(writer.written) > 20, what="some writes")
        written.extend(writer.written)

    write_some()
    service.facade.restart()
    write_some()
    service.daemon.kill()
    service.daemon.start()
    wait_until(lambda: is_ready(service.url), what="the facade reaches the daemon")
    write_some()
    service.facade.kill()
    leader = fleet.wait_for_leader()
    fleet.remove(leader)
    leader.kill()
    service.facade.start()
    write_some()
    for tab in fleet.tabs:
        assert_exact(tab, written)
        assert tab.run("states.at(-1)") == "live"
    fleet.wait_for_one_stream()


def is_ready(url: str) -> bool:
    with closing(Session(url)) as session:
        return session.get("/readyz").status == 200


def test_where_the_log_no_longer_reaches_every_tab_is_told_and_gets_what_is_there(
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
    browser: Browser,
) -> None:
    daemon = start_daemon(retain_events=20)
    service = Service(daemon, start_facade(daemon))
    fleet = Fleet(browser, service.url, {"prefix": "t/"})
    fleet.add(3)
    fleet.wait_for_one_stream()
    with Client(daemon.requests) as client:
        client.put("t/before", "x")
        for tab in fleet.tabs:
            wait_until(lambda tab=tab: tab.run("log.some(([op]) => op === 'put')"), what="a put")
        service.facade.stop()
        for number in range(60):
            client.put(f"t/{number % 7}", f"{number}")
        client.delete("t/before")
        last = client.put("t/last", "x").revision
        present = {record.key: record.text for record in client.list(prefix="t/")}
        service.facade.start()
    for tab in fleet.tabs:
        wait_until(
            lambda tab=tab: tab.run(f"log.some(([op, revision]) => op === 'sync' && revision >= {last})"),
            what=f"the snapshot in {tab.log[-3:]}",
        )
        log = tab.log
        (reset,) = [at for at, (op, *_) in enumerate(log) if op == "reset"]
        assert {key: value for op, _, _, key, value in log[reset:] if op == "put"} == present
    fleet.wait_for_one_stream()
    for tab in fleet.tabs:
        tab.close()


def test_filters_of_all_tabs_are_joined_and_each_gets_its_own(
    service: Service, start_fleet: Callable[..., Fleet]
) -> None:
    """So many that they fit no address."""
    prefixes = [f"t/{number}/{'x' * 20}" for number in range(400)]
    fleet = start_fleet(0)
    for part in (prefixes[:200], prefixes[200:]):
        fleet.watch = {"prefixes": part, "values": False}
        fleet.add(2)
    fleet.watch = {"key": "t/one", "ops": ["delete"]}
    fleet.add()
    fleet.watch = {"prefix": "t/5/"}
    fleet.add()
    fleet.wait_for_one_stream()
    with closing(Session(service.url)) as session:
        ops = [{"op": "put", "key": f"{prefix}/k", "value": "v"} for prefix in (prefixes[5], prefixes[300])]
        session.post("/v1/batch", {"ops": [*ops, {"op": "put", "key": "t/one", "value": "v"}]})
        session.post("/v1/batch", {"ops": [{"op": "delete", "key": "t/one"}]})
        last = session.post("/v1/batch", {"atomic": True, "ops": ops}).json["results"][0]["revision"]
    expected = [
        *[[["put", prefixes[5] + "/k", ""]] * 2] * 2,
        *[[["put", prefixes[300] + "/k", ""]] * 2] * 2,
        [["delete", "t/one", ""]],
        [["put", prefixes[5] + "/k", "v"]] * 2,
    ]
    seen = "JSON.stringify(log.filter(([op]) => op !== 'sync').map(([op, , , ...rest]) => [op, ...rest]))"
    for tab, events in zip(fleet.tabs, expected, strict=True):
        wait_until(
            lambda tab=tab, events=events: json.loads(tab.run(seen)) == events,
            what=f"{events} in a tab that has {tab.log} up to {last}",
        )
    fleet.wait_for_one_stream()


def test_the_page_in_many_tabs_has_one_stream(browser: Browser, service: Service) -> None:
    tabs = [Tab(browser, f"{service.url}/ui/#prefix=page/") for _ in range(TABS)]
    tabs.append(Tab(browser, f"{service.url}/ui/#view=changes&prefix=page/"))
    for tab in tabs[:TABS]:
        wait_until(
            lambda tab=tab: "No key begins with" in tab.run("document.body.innerText"), what="the page"
        )
    wait_until(lambda: scrape(service.url).value("kvstore_http_streams") == 1, what="one stream", timeout=40)
    with closing(Session(service.url)) as session:
        for name in ("a", "b"):
            session.put(f"/v1/kv/page/{name}", b"x")
            for tab in tabs:
                names = "[...document.querySelectorAll('main .name')]"
                shown = f"{names}.some((each) => each.innerText.endsWith('{name}'))"
                wait_until(lambda tab=tab, shown=shown: tab.run(shown), what=f"{name} is shown")
            tabs.pop(0).kill()
    wait_until(lambda: scrape(service.url).value("kvstore_http_streams") == 1, what="one stream", timeout=40)
    for tab in tabs:
        tab.close()


def test_tabs_with_another_credential_have_a_stream_of_their_own(
    browser: Browser, start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon(access="required")
    facade = start_facade(daemon, facade_key_file=str(daemon.data / "facade.key"))
    with closing(Protected(daemon, facade)) as protected:
        fleet = Fleet(browser, protected.url, {"prefix": "t/"})
        tokens = [protected.token(name, "rw:t/") for name in ("one", "other")]
        for token in tokens:
            fleet.options = json.dumps({"token": token})
            fleet.add(2)
        headers = {"Authorization": f"Bearer {protected.admin_token}"}

        def streams() -> str:
            return call(protected.url, "GET", "/metrics", headers=headers).body.decode()

        wait_until(lambda: "\nkvstore_http_streams 2.0\n" in streams(), what="two streams", timeout=40)
        fleet.watch = {"prefix": "t/", "values": False}
        for token in tokens:
            fleet.options = json.dumps({"token": token, "shared": "the same person"})
            fleet.add()
        wait_until(lambda: "\nkvstore_http_streams 3.0\n" in streams(), what="a third", timeout=40)
        names = json.dumps(fleet.locks())
        for token in tokens:
            assert token.split("_")[2][:10] not in names
        protected.change("token_delete", "one", id=tokens[0].split("_")[1])
        for tab in fleet.tabs[:2]:
            wait_until(lambda tab=tab: tab.failure, what="the watch ends")
            assert tab.failure.startswith("unauthenticated: ")
        assert [tab.failure for tab in fleet.tabs[2:4]] == ["", ""]
        for tab in fleet.tabs:
            tab.close()
