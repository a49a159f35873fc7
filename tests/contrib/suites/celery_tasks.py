"""The tasks of the suite with real workers. Their broker is a folder."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from celery import Celery
from kombu.transport import filesystem
from kombu.utils.json import dumps

FOLDER = os.environ["CELERY_FOLDER"]


def put_whole(self, queue, payload, **_):
    """Its own may be read half written, at which a worker ends."""
    file = Path(FOLDER, f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}.msg")
    part = file.with_suffix(".part")
    part.write_text(dumps(payload))
    part.rename(file)


filesystem.Channel._put = put_whole

app = Celery("celery_tasks", broker="filesystem://", backend=os.environ["KVSTORE_FOR_SUITE"].format("celery"))
app.conf.broker_transport_options = {
    "data_folder_in": FOLDER,
    "data_folder_out": FOLDER,
    "control_folder": f"{FOLDER}/control",
    "polling_interval": 0.02,
}
app.conf.result_extended = True
# used before the pool forks, so that its processes inherit a client with open connections
app.backend.get("at the start")


@app.task
def add(one, other):
    return one + other


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def fail():
    raise LookupError("no such thing")


@app.task(bind=True, max_retries=5, retry_backoff=False)
def third_time(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task(ignore_result=True)
def silent():
    return "nobody asks"


@app.task
def gated(file):
    while not Path(file).exists():
        time.sleep(0.01)
    return os.getpid()


@app.task
def large():
    return "x" * 2**20
