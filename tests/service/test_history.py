"""What many clients and watchers saw at once, while the processes were killed and stopped, fits together.

Each run is one story: eight clients contend for five keys, over HTTP and ZeroMQ; mirrors on every surface
follow them, and hang up; the log is trimmed all the while; and faults come one after the other. Afterwards
everything that anybody was told is held against everything else.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from support.faults import Faults
from support.lengths import SHARE, Survived, times
from support.servers import Daemon, Facade, Service
from support.story import Story

RUNS = times(1, full=50)
FAULTS = 8 if SHARE else 5
RETAINED_EVENTS = 200

pytestmark = [pytest.mark.torture, pytest.mark.timeout(300)]


@pytest.mark.parametrize("number", range(RUNS))
def test_everything_that_was_told_fits_together(
    number: int,
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
    tmp_path: Path,
    survived: Survived,
    request: pytest.FixtureRequest,
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"run {number + 1} of {RUNS}: seed {seed}")
    daemon = start_daemon(retain_events=RETAINED_EVENTS)
    service = Service(daemon, start_facade(daemon, workers=2))
    is_shared = request.config.getoption("--engine") == "etcd"
    story = Story([service], seed, folder=tmp_path, is_shared=is_shared)
    faults = Faults(service, random.Random(seed), survived)

    def harm() -> None:
        for number in range(FAULTS):
            faults.kinds[number % len(faults.kinds)]()
            story.go_on()

    story.tell(harm, survived)
    try:
        story.check()
    except AssertionError as failure:
        story.save(tmp_path)
        failure.add_note(f"seed {seed}; the history and the log are in {tmp_path}")
        raise
