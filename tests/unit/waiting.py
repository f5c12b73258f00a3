# SPDX-License-Identifier: Apache-2.0
"""Run waiting tasks the way Airflow does, with each way of waiting, and without an Airflow around them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace

from airflow.providers.common.compat.sdk import TaskDeferred
from leaks import leak_in

PATIENCE = 15


def kept(value):
    """Return the JSON that Airflow would keep."""
    text = json.dumps(value)
    assert leak_in(text) is None
    return text


class TaskInstance(SimpleNamespace):
    """What a task asks of its task instance; ``state`` is what Airflow has it down as."""

    def __init__(self, **fields):
        super().__init__(
            **{
                "dag_id": "dag",
                "task_id": "task",
                "run_id": "run",
                "map_index": -1,
                "try_number": 1,
                "max_tries": 2,
                "task": SimpleNamespace(retries=2),
                "start_date": datetime.now(UTC),
                "next_method": None,
                "state": "running",
                "xcom": {},
                **fields,
            }
        )

    def xcom_push(self, key, value):
        self.xcom[key] = json.loads(kept(value))

    def xcom_pull(self, task_ids, key, map_indexes):
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.xcom.get(key)

    def get_task_states(self, dag_id, map_index, task_ids, run_ids):
        assert (dag_id, map_index, task_ids, run_ids) == (self.dag_id, self.map_index, [self.task_id], [self.run_id])
        name = self.task_id if map_index < 0 else f"{self.task_id}_{map_index}"
        return {self.run_id: {name: self.state}} if self.state != "deleted" else {}


class Store(dict):
    """Airflow's task state store."""

    def set(self, key, value):
        self[key] = json.loads(kept(value))

    def delete(self, key):
        self.pop(key, None)


def context(store=None, **task_instance):
    now = datetime.now(UTC)
    return {
        "dag_run": SimpleNamespace(run_type="manual", run_after=now, start_date=now),
        "ti": TaskInstance(**task_instance),
        **({} if store is None else {"task_state_store": store}),
    }


def in_worker(make, run):
    """Wait in the worker."""
    return make(deferrable=False).execute(run)


def deferred(make, run):
    """Wait in the triggerer; each part runs with an operator of its own, and all that is kept is JSON."""
    try:
        return make(deferrable=True).execute(run)
    except TaskDeferred as deferral:
        return resume(make, run, deferral)


def resume(make, run, deferral):
    while True:
        event = event_of(deferral.trigger)
        run["ti"].next_method = deferral.method_name
        try:
            return make(deferrable=True).resume_execution(deferral.method_name, {"event": event}, run)
        except TaskDeferred as again:
            deferral = again


def stored(trigger):
    """Return the trigger as the triggerer makes it from the database."""
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    assert leak_in(repr(trigger)) is None
    return getattr(importlib.import_module(module), name)(**json.loads(kept(arguments)))


def event_of(trigger):
    async def events():
        async with asyncio.timeout(PATIENCE):
            return [event.payload async for event in stored(trigger).run()]

    (payload,) = asyncio.run(events())
    return json.loads(kept(payload))


WAYS = {"worker": in_worker, "deferred": deferred}


@contextlib.contextmanager
def meanwhile(when, act):
    """Once ``when()`` is so, do something in a thread."""
    over = threading.Event()
    failures = []

    def work():
        deadline = time.monotonic() + PATIENCE
        while not when():
            if over.wait(0.01) or time.monotonic() > deadline:
                failures.append("what was waited for never came")
                return
        act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failures
