# SPDX-License-Identifier: Apache-2.0
"""Run waiting tasks the way Airflow does, with each way of waiting, and without an Airflow around them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import threading
from collections import deque
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, TaskDeferred

from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor
from airflow_provider_voicegenie.start import find_out, guards, record
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.waiting import wait
from helpers.clock import Clock, now
from helpers.leaks import leak_in

#: Seconds until something that hangs is named; pytest's own limit comes a little later.
PATIENCE = 100


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
                "start_date": now(),
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
        # Airflow refuses tuples.
        assert self[key] == value

    def delete(self, key):
        self.pop(key, None)


def context(store=None, *, clear_number=0, was_ended_by_user=False, **task_instance):
    """Return the context of a try; the process of the try before it may have noted that a user ended it."""
    moment = now()
    keys = ["return_value", *(["voicegenie_ended_by_user"] if was_ended_by_user else [])]
    return {
        "dag_run": SimpleNamespace(run_type="manual", run_after=moment, start_date=moment, clear_number=clear_number),
        "ti": TaskInstance(**task_instance, _ti_context_from_server=SimpleNamespace(xcom_keys_to_clear=keys)),
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


_WATCHES = {"pause": "pausing.PauseWatch", "ready": "readiness.ReadinessWatch"}


def wait_trigger(campaign_id, kind="start", *, prerequisites=(), **arguments):
    """Return the trigger of a task of this kind; its arguments and its watch's."""
    # A resumed task needs none of what a trigger needs, which a test shows.
    from airflow_provider_voicegenie.triggers.wait import WaitTrigger

    own = {name: arguments.pop(name) for name in ("stall_timeout", "counters", "min_success_rate") if name in arguments}
    if kind == "ready":
        own["prerequisites"] = [list(each.serialize()) for each in prerequisites]
    return WaitTrigger(
        **{
            "campaign_id": campaign_id,
            "voicegenie_conn_id": "voicegenie_default",
            "watch": f"airflow_provider_voicegenie.waiting.{_WATCHES.get(kind, 'completion.CompletionWatch')}",
            "arguments": own,
            "kind": kind,
            "outcomes": {},
            "poll_interval": 0.2,
            **arguments,
        }
    )


def event_of(trigger):
    path, arguments = trigger.serialize()
    if path.endswith("DateTimeTrigger"):
        # Airflow's own. A triggerer resumes nothing before, were it by what a number is rounded.
        Clock.current.sleep((arguments["moment"] - now()).total_seconds() + 0.001)
        return None

    async def events():
        async with asyncio.timeout(PATIENCE):
            return [event.payload async for event in stored(trigger).run()]

    (payload,) = asyncio.run(events())
    return json.loads(kept(payload))


WAYS = {"worker": in_worker, "deferred": deferred}


@contextlib.contextmanager
def meanwhile(*steps):
    """
    Once ``when()`` is so, do something: in a thread, or before the task's next sleep ends if that is earlier.

    :param steps: ``when``, ``act``, and then the same again: each is asked once what comes before it was done.
    """
    over, lock = threading.Event(), threading.Lock()
    left = deque(zip(steps[::2], steps[1::2], strict=True))

    def attempt():
        with lock:
            while left and left[0][0]():
                left.popleft()[1]()

    def work():
        while left and not over.wait(0.01):
            attempt()

    clock = Clock.current
    if clock is not None:
        clock.add_action(attempt)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if clock is not None:
            clock.remove_action(attempt)
    assert not left, "what was waited for never came"


# Tasks that wait, and what may happen to them.


ENDS = {"skip": AirflowSkipException, "fail": AirflowFailException, "retry": VoiceGenieRetryException}


class Starting:
    """A task that starts a campaign and follows it."""

    campaign_id = "long"

    def __init__(self, **arguments):
        self.arguments = arguments

    def __call__(self, *, deferrable):
        return StartCampaignOperator(
            **{
                "task_id": "task",
                "campaign_id": self.campaign_id,
                "wait_for_completion": True,
                "poll_interval": 0.1,
                "deferrable": deferrable,
                **self.arguments,
            }
        )


class Following:
    """A sensor that follows a campaign started elsewhere."""

    campaign_id = "followed"

    def __init__(self, **arguments):
        self.arguments = arguments

    def __call__(self, *, deferrable):
        return CampaignCompletedSensor(
            **{
                "task_id": "task",
                "campaign_id": self.campaign_id,
                "poke_interval": 0.1,
                "deferrable": deferrable,
                **self.arguments,
            }
        )


TASKS = {"start": Starting, "sensor": Following}


both_ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


both_tasks = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def is_waiting(sandbox, campaign_id):
    """Return a condition: the campaign runs, and the wait for its end has begun."""

    def check():
        return sandbox.status(campaign_id) == "running" and sandbox.request_count("get", campaign_id) >= 2

    return check


def change(sandbox, campaign_id, **changes):
    return lambda: sandbox.sandbox.store.change(campaign_id, **changes)


def complete(sandbox, campaign_id, **changes):
    return change(sandbox, campaign_id, status="completed", ended_at=now(), **changes)


def after_requests(sandbox, number):
    """Return a condition: so many requests more have come since it was first asked."""
    wanted = []

    def check():
        if not wanted:
            wanted.append(len(sandbox.sandbox.requests) + number)
        return len(sandbox.sandbox.requests) >= wanted[0]

    return check


def in_wait(patch, when, act):
    """Raise an error, or do something, in the sleep of the wait in the worker, once ``when()`` is so."""
    original = wait.time.sleep

    def sleep(seconds):
        original(seconds)
        if when():
            patch.setattr(wait.time, "sleep", original)
            if isinstance(act, BaseException):
                raise act
            act()

    patch.setattr(wait.time, "sleep", sleep)


#: The steps before a start at which a kill may come, in their order, and the requests that were sent by then.
STEPS = ["before execute", "link", "recall", "run facts", "get_conn", "get_campaign", "record", "campaign_id"]


def kill_at(patch, step, operator, run, state="failed", *, tells=True):
    """Let Airflow end the task at one step; it may tell the task at once, or not before the task asks."""
    act, at = {
        "link": (TaskInstance, "xcom_push"),
        "recall": (record.OwnStart, "recall"),
        "run facts": (guards, "check_backfill"),
        "get_conn": (VoiceGenieHook, "get_conn"),
        "get_campaign": (VoiceGenieHook, "get_campaign"),
        "record": (record.OwnStart, "add_record"),
        "campaign_id": (TaskInstance, "xcom_push"),
        "start": (VoiceGenieHook, "start_campaign"),
        "phase": (record.OwnStart, "set_phase"),
        "look": (find_out, "_read_until_started"),
        "deferral": (TaskInstance, "xcom_push"),
    }.get(step, (None, None))

    def kill():
        run["ti"].state = state
        if tells:
            operator.on_kill()

    if act is None:
        kill()
        return
    original = getattr(act, at)
    key = {"link": "_link_CampaignLink", "campaign_id": "campaign_id", "deferral": "voicegenie_task"}.get(step)

    def killed(*arguments, **more):
        result = original(*arguments, **more)
        if more.get("key") != key:
            return result
        patch.setattr(act, at, original)
        kill()
        return result

    patch.setattr(act, at, killed)


def shorten_times(patch):
    """Let what waits for seconds or minutes after a start without a response wait for next to nothing."""
    patch.setattr(timing, "start_read_delays", (0.0, 0.05))
    patch.setattr(timing, "statistics_lag", 0.0)
