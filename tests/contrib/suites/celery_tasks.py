"""The tasks of the suite with real workers. Their broker is a folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery

FOLDER = os.environ["CELERY_FOLDER"]

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
