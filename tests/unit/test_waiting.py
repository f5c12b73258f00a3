# SPDX-License-Identifier: Apache-2.0
"""Tasks that wait for the end of a campaign, in a worker and deferred, by one table and over real HTTP."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from waiting import WAYS, Store, TaskInstance, context, deferred, event_of, in_worker, meanwhile, resume

from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators import campaign as operators
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.sensors import campaign as sensors
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor, CampaignReadySensor, HasContacts
from airflow_provider_voicegenie.start import once
from airflow_provider_voicegenie.triggers import feed as feeds
from airflow_provider_voicegenie.waiting import final_statistics, worker

ENDS = {"skip": AirflowSkipException, "fail": AirflowFailException, "retry": VoiceGenieRetryException}


@pytest.fixture
def sandbox(voicegenie_sandbox, monkeypatch):
    monkeypatch.setattr(once, "_LOOK_DELAYS", (0.0, 0.05))
    monkeypatch.setattr(once, "_STATISTICS_LAG", timedelta(0))
    monkeypatch.setattr(feeds, "_LOOK_AGAIN", 0.0)
    connection = voicegenie_sandbox.connection(max_attempts=1, timeout=1, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    voicegenie_sandbox.add_campaign(id="long", total_count=10_000)
    voicegenie_sandbox.add_campaign(id="followed", status="running", total_count=10_000)
    return voicegenie_sandbox


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
    return change(sandbox, campaign_id, status="completed", ended_at=datetime.now(UTC), **changes)


def after_requests(sandbox, number):
    """Wait until so many requests more have come."""
    wanted = len(sandbox.sandbox.requests) + number
    while len(sandbox.sandbox.requests) < wanted:
        time.sleep(0.01)


@both_ways
@both_tasks
def test_a_campaign_that_completes(sandbox, way, task):
    run = context()
    with meanwhile(
        is_waiting(sandbox, task.campaign_id),
        complete(sandbox, task.campaign_id, total_count=100, completed_count=80, failed_count=20),
    ):
        result = way(task(), run)
    assert json.loads(json.dumps(result)) == result
    assert (result["campaign_id"], result["status"]) == (task.campaign_id, "completed")
    assert datetime.fromisoformat(result["completed_at"]).tzinfo
    assert set(result["statistics"]) == {
        "total_contacts",
        "calls_completed",
        "calls_failed",
        "call_status_breakdown",
        "success_rate",
        "average_call_duration",
        "total_call_duration",
    }
    numbers = result["statistics"]
    assert (numbers["total_contacts"], numbers["calls_completed"], numbers["calls_failed"]) == (100, 80, 20)
    if task is Starting:
        assert result["started_by_task"] is True
        assert result["started_at"].endswith("Z")
        assert sandbox.start_count("long") == 1
    assert sandbox.request_count("pause") == 0


#: Condition -> what happens to the campaign, and what the task is given.
CONDITIONS = {
    "CAMPAIGN_FAILED": ({"status": "failed"}, {}),
    "CAMPAIGN_STOPPED": ({"status": "stopped"}, {}),
    "CAMPAIGN_PAUSED": ({"status": "paused"}, {}),
    # No call of the sandbox ends in its first half minute.
    "CAMPAIGN_STALLED": ({}, {"stall_timeout": 0.3}),
    "SUCCESS_RATE_TOO_LOW": (
        {"status": "completed", "total_count": 10, "completed_count": 3, "failed_count": 7},
        {"min_success_rate": 30.1},
    ),
    "NOT_FOUND": (None, {}),
    "UNAUTHORIZED": (None, {}),
    "FORBIDDEN": (None, {}),
}


@both_ways
@both_tasks
@pytest.mark.parametrize("outcome", [None, "skip", "retry"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_each_condition_of_a_wait_has_its_outcome(sandbox, way, task, outcome, condition):
    changes, arguments = CONDITIONS[condition]
    if condition == "CAMPAIGN_PAUSED" and outcome is None:
        outcome = "fail"
    outcomes = {condition: outcome} if outcome else {}

    def act():
        store = sandbox.sandbox.store
        if condition == "NOT_FOUND":
            store.remove(task.campaign_id)
        elif condition == "UNAUTHORIZED":
            sandbox.sandbox.api_key = "another"
        elif condition == "FORBIDDEN":
            sandbox.inject("status", "get", status=403, times=None)
            sandbox.inject("status", "list", status=403, times=None)
        else:
            store.change(task.campaign_id, **changes)

    with (
        meanwhile(is_waiting(sandbox, task.campaign_id), act),
        pytest.raises(ENDS[outcome or "fail"]) as caught,
    ):
        way(task(outcomes=outcomes, **arguments), context())
    assert f"[{condition}:" in str(caught.value)
    assert repr(task.campaign_id) in str(caught.value)
    assert sandbox.request_count("pause") == 0


@both_ways
@both_tasks
@pytest.mark.parametrize("condition", ["CAMPAIGN_STOPPED", "CAMPAIGN_PAUSED", "SUCCESS_RATE_TOO_LOW"])
def test_a_condition_of_a_wait_may_count_as_success(sandbox, way, task, condition):
    changes, arguments = CONDITIONS[condition]
    with meanwhile(is_waiting(sandbox, task.campaign_id), change(sandbox, task.campaign_id, **changes)):
        result = way(task(outcomes={condition: "succeed"}, **arguments), context())
    assert result["status"] == changes["status"]
    assert (result["statistics"] is not None) is (condition == "SUCCESS_RATE_TOO_LOW")


@both_ways
@both_tasks
def test_a_pause_by_someone_is_waited_out_and_said_once(sandbox, way, task, caplog):
    caplog.set_level(logging.INFO)

    def act():
        sandbox.sandbox.store.change(task.campaign_id, status="paused")
        after_requests(sandbox, 4)
        complete(sandbox, task.campaign_id)()

    with meanwhile(is_waiting(sandbox, task.campaign_id), act):
        assert way(task(), context())["status"] == "completed"
    if way is in_worker:  # what a trigger logs does not come by here
        said = [record for record in caplog.records if "CAMPAIGN_PAUSED: the wait goes on" in record.getMessage()]
        assert len(said) == 1


@both_ways
@both_tasks
@pytest.mark.parametrize("kind", ["close", "status", "not_json", "truncated"])
def test_temporary_trouble_does_not_end_a_wait(sandbox, way, task, kind):
    def act():
        sandbox.inject(kind, "*", times=None, **({"status": 503} if kind == "status" else {}))
        after_requests(sandbox, 2)
        complete(sandbox, task.campaign_id)()
        sandbox.sandbox.faults.clear()

    # What an author says of the start's own trouble is nothing to the wait.
    outcomes = {"CONNECTION_FAILED": "fail"} if task is Starting else {}
    with meanwhile(is_waiting(sandbox, task.campaign_id), act):
        assert way(task(outcomes=outcomes), context())["status"] == "completed"


def test_each_poll_in_a_worker_is_one_attempt(sandbox, monkeypatch):
    """The wait repeats by itself, and attempts of the client's own could outlast its time."""
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(max_attempts=4, timeout=1))
    run = context()

    def fail_from_now_on(*_):
        sandbox.inject("status", "get", status=503, times=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(once.StartRecords, "set_phase", fail_from_now_on)
        in_wait(patch, lambda: True, ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            Starting(poll_interval=0.1)(deferrable=False).execute(run)
    assert [request.status for request in sandbox.sandbox.requests if request.operation == "get"] == [200, 503]


@both_ways
def test_the_completion_timeout(sandbox, way):
    for outcome in ("fail", "skip", "retry", "succeed"):
        sandbox.add_campaign(id="long", total_count=10_000)
        task = Starting(completion_timeout=timedelta(seconds=0.3), outcomes={"COMPLETION_TIMEOUT": outcome})
        if outcome == "succeed":
            result = way(task, context())
            assert (result["status"], result["completed_at"], result["statistics"]) == ("running", None, None)
        else:
            with pytest.raises(ENDS[outcome], match="COMPLETION_TIMEOUT") as caught:
                way(task, context())
            assert "status 'running', 0 of 10000 calls done" in str(caught.value)
        assert sandbox.status("long") == "running"
    assert sandbox.request_count("pause") == 0


def test_the_completion_timeout_counts_from_before_the_deferral(sandbox):
    """A triggerer that comes back late finds the time over, and does not begin it anew."""
    run = context()
    with pytest.raises(TaskDeferred) as deferral:
        Starting(completion_timeout=60)(deferrable=True).execute(run)
    arguments = deferral.value.trigger.serialize()[1]
    late = type(deferral.value.trigger)(**{**arguments, "deadline": arguments["deadline"] - 60})
    deferral.value.trigger = late
    with pytest.raises(AirflowFailException, match="COMPLETION_TIMEOUT"):
        resume(Starting(completion_timeout=60), run, deferral.value)
    assert 60 < deferral.value.timeout.total_seconds() <= 120


@both_ways
@both_tasks
def test_statistics_that_cannot_be_read_now_are_read_later(sandbox, monkeypatch, way, task):
    monkeypatch.setattr(final_statistics, "STATISTICS_DELAY", 0.1)
    sandbox.inject("status", "stats", status=503, times=2)
    with meanwhile(is_waiting(sandbox, task.campaign_id), complete(sandbox, task.campaign_id)):
        result = way(task(), context())
    assert result["statistics"]["total_contacts"] == 10_000
    assert sandbox.request_count("stats") == 3


@both_ways
@both_tasks
@pytest.mark.parametrize("minimum", [None, 50])
def test_statistics_that_stay_unreadable_end_the_wait_all_the_same(sandbox, monkeypatch, way, task, minimum):
    monkeypatch.setattr(final_statistics, "STATISTICS_DELAY", 0.1)
    monkeypatch.setattr(final_statistics, "_PATIENCE_WITH_INVALID_ANSWERS", 0.5)
    sandbox.inject("not_json", "stats", times=None)
    arguments = {"min_success_rate": minimum, "outcomes": {"INVALID_ANSWER": "fail"}}
    with meanwhile(is_waiting(sandbox, task.campaign_id), complete(sandbox, task.campaign_id)):
        if minimum is None:
            result = way(task(**arguments), context())
            assert (result["status"], result["statistics"]) == ("completed", None)
        else:
            with pytest.raises(AirflowFailException, match=r"min_success_rate needs, cannot be read.*INVALID_ANSWER"):
                way(task(**arguments), context())
    assert sandbox.request_count("stats") >= 2


@both_ways
@both_tasks
def test_a_completion_that_was_seen_in_time_is_no_timeout(sandbox, monkeypatch, way, task):
    """The service's statistics may be half a minute old, and time may be over until they are not."""
    monkeypatch.setattr(final_statistics, "STATISTICS_DELAY", 0.3)
    monkeypatch.setattr(final_statistics, "_STATISTICS_AGE", 3.0)
    sandbox.sandbox.cache_stats = True
    VoiceGenieHook().get_campaign_stats(task.campaign_id)
    limit = {"completion_timeout": 2} if task is Starting else {"timeout": 2}
    with meanwhile(is_waiting(sandbox, task.campaign_id), complete(sandbox, task.campaign_id)):
        began = time.monotonic()
        result = way(task(**limit), context())
    assert time.monotonic() - began > 2
    assert (result["status"], result["statistics"]["total_contacts"]) == ("completed", 10_000)


@both_ways
def test_a_sensor_that_needs_statistics_waits_for_them_as_for_all_else(sandbox, monkeypatch, way):
    monkeypatch.setattr(final_statistics, "STATISTICS_DELAY", 0.1)
    monkeypatch.setattr(final_statistics, "_PATIENCE_WITH_INVALID_ANSWERS", 0.2)
    sandbox.inject("not_json", "stats", times=6)
    with meanwhile(is_waiting(sandbox, "followed"), complete(sandbox, "followed", completed_count=9_000)):
        result = way(Following(min_success_rate=50), context())
    assert result["statistics"]["calls_completed"] == 9_000
    assert sandbox.request_count("stats") == 7


@both_ways
@both_tasks
def test_refused_statistics_do_not_hide_a_completion(sandbox, way, task):
    sandbox.inject("status", "stats", status=403, times=None)
    with meanwhile(is_waiting(sandbox, task.campaign_id), complete(sandbox, task.campaign_id)):
        result = way(task(), context())
    assert (result["status"], result["statistics"]) == ("completed", None)


@both_ways
def test_a_start_that_is_over_at_once_is_followed_too(sandbox, way):
    sandbox.inject("close", "start", after_acting=True)
    with meanwhile(lambda: sandbox.status("long") == "running", complete(sandbox, "long")):
        result = way(Starting(), context())
    assert (result["status"], result["started_by_task"]) == ("completed", True)
    assert sandbox.start_count("long") == 1


@both_ways
def test_a_campaign_that_runs_already_can_be_followed(sandbox, way):
    task = Starting(campaign_id="followed", outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"})
    with meanwhile(is_waiting(sandbox, "followed"), complete(sandbox, "followed")):
        result = way(task, context())
    assert (result["status"], result["started_by_task"]) == ("completed", False)
    assert sandbox.request_count("start") == 0


def test_a_campaign_that_is_over_otherwise_is_not_followed(sandbox):
    task = Starting(campaign_id="stopped", outcomes={"CAMPAIGN_COMPLETED": "succeed"})
    result = task(deferrable=False).execute(context())
    assert (result["status"], result["started_by_task"], result["statistics"]) == ("stopped", False, None)


def test_the_wait_in_the_triggerer_knows_what_the_start_knew(sandbox):
    change(sandbox, "long", completed_count=5, failed_count=2)()
    with pytest.raises(TaskDeferred) as deferral:
        Starting(pause_on_kill=False, stall_timeout=60)(deferrable=True).execute(context())
    arguments = deferral.value.trigger.serialize()[1]
    assert arguments["pause_on_kill"] is False
    assert arguments["stall_timeout"] == 60
    assert (arguments["seen"]["completed"], arguments["seen"]["failed"]) == (5, 2)
    assert abs(arguments["seen"]["at"] - time.time()) < 10


def test_only_what_the_task_started_is_paused_in_the_triggerer(sandbox):
    for campaign_id, is_ours in (("followed", False), ("long", True)):
        task = Starting(campaign_id=campaign_id, outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"})
        with pytest.raises(TaskDeferred) as deferral:
            task(deferrable=True).execute(context())
        assert deferral.value.trigger.serialize()[1]["pause_on_kill"] is is_ours


def test_a_task_that_is_skipped_does_not_wait(sandbox):
    with pytest.raises(AirflowSkipException):
        Starting(campaign_id="followed")(deferrable=True).execute(context())


def test_without_waiting_nothing_is_deferred(sandbox):
    result = Starting(wait_for_completion=False)(deferrable=True).execute(context())
    assert "statistics" not in result


# Sensors.


@both_ways
def test_a_campaign_that_is_completed_already_needs_no_deferral(sandbox, way):
    result = Following(campaign_id="completed")(deferrable=way is deferred).execute(context())
    assert result["status"] == "completed"
    assert result["statistics"]["total_contacts"] > 0


@both_ways
@pytest.mark.parametrize("soft_fail", [False, True])
@pytest.mark.parametrize("sensor", [CampaignCompletedSensor, CampaignReadySensor])
def test_the_timeout_of_a_sensor(sandbox, way, soft_fail, sensor):
    def make(*, deferrable):
        campaign_id = "followed" if sensor is CampaignCompletedSensor else "no-script"
        return sensor(
            task_id="task",
            campaign_id=campaign_id,
            timeout=0.3,
            poke_interval=0.1,
            soft_fail=soft_fail,
            deferrable=deferrable,
        )

    with pytest.raises(AirflowSkipException if soft_fail else AirflowSensorTimeout):
        way(make, context())


@both_ways
@pytest.mark.parametrize("soft_fail", [False, True])
def test_soft_fail_skips_what_would_fail(sandbox, way, soft_fail):
    with (
        meanwhile(is_waiting(sandbox, "followed"), change(sandbox, "followed", status="stopped")),
        pytest.raises(AirflowSkipException if soft_fail else AirflowFailException),
    ):
        way(Following(soft_fail=soft_fail), context())


@both_ways
@pytest.mark.parametrize("sensor", [CampaignCompletedSensor, CampaignReadySensor])
def test_soft_fail_spares_a_retry(sandbox, way, sensor):
    campaign_id = "followed" if sensor is CampaignCompletedSensor else sandbox.add_campaign(script_id=None).id

    def make(*, deferrable):
        return sensor(
            task_id="task",
            campaign_id=campaign_id,
            poke_interval=0.1,
            soft_fail=True,
            deferrable=deferrable,
            outcomes={"CAMPAIGN_STOPPED" if sensor is CampaignCompletedSensor else "CAMPAIGN_COMPLETED": "retry"},
        )

    seen = lambda: sandbox.request_count("get", campaign_id) >= 2  # noqa: E731
    with (
        meanwhile(seen, change(sandbox, campaign_id, status="stopped")),
        pytest.raises(VoiceGenieRetryException),
    ):
        way(make, context())


@both_ways
def test_readiness(sandbox, way):
    campaign = sandbox.add_campaign(script_id=None, total_count=3)

    def make(*, deferrable):
        return CampaignReadySensor(
            task_id="task",
            campaign_id=campaign.id,
            poke_interval=0.1,
            prerequisites=[HasContacts(5)],
            deferrable=deferrable,
        )

    ready = change(sandbox, campaign.id, script_id="s", total_count=5)
    with meanwhile(lambda: sandbox.request_count("get", campaign.id) >= 3, ready):
        result = way(make, context())
    assert (result["campaign_id"], result["total_count"]) == (campaign.id, 5)


def reschedule(make, run):
    """Poke with a new sensor each time, as Airflow does in this mode."""
    while not (outcome := make(deferrable=False).poke(run)).is_done:
        time.sleep(0.05)
    return outcome.xcom_value


@pytest.mark.parametrize("keeps_state", [True, False])
def test_a_stall_in_reschedule_mode(sandbox, monkeypatch, keeps_state):
    monkeypatch.setattr(sensors, "_KEEPS_TASK_STATE", keeps_state)
    task = Following(mode="reschedule", stall_timeout=0.3)
    if not keeps_state:
        with pytest.raises(ValueError, match="stall_timeout"):
            task(deferrable=False)
        assert task(deferrable=True)
        return
    store = Store()
    with pytest.raises(AirflowFailException, match="CAMPAIGN_STALLED"):
        reschedule(task, context(store))
    assert sandbox.api_key not in json.dumps(store)
    with meanwhile(is_waiting(sandbox, "followed"), complete(sandbox, "followed")):
        assert reschedule(task, context())["status"] == "completed"


@pytest.mark.skipif(not sensors._KEEPS_TASK_STATE, reason="a rescheduled sensor forgets, before Airflow 3.3")
def test_a_retry_in_reschedule_mode_counts_a_stall_from_its_own_begin(sandbox):
    store = Store()
    task = Following(mode="reschedule", stall_timeout=0.5, outcomes={"CAMPAIGN_STALLED": "retry"})
    for try_number in (1, 2):
        began = time.monotonic()
        with pytest.raises(VoiceGenieRetryException, match="CAMPAIGN_STALLED"):
            reschedule(task, context(store, try_number=try_number))
        assert time.monotonic() - began >= 0.5


@both_tasks
def test_a_completion_stays_one_though_airflow_does_not_give_the_connection(sandbox, monkeypatch, task):
    run = context()
    with pytest.raises(TaskDeferred) as deferral:
        task()(deferrable=True).execute(run)
    complete(sandbox, task.campaign_id)()
    event = event_of(deferral.value.trigger)
    monkeypatch.setattr(final_statistics, "_PATIENCE", 0.1)
    monkeypatch.setattr(final_statistics, "STATISTICS_DELAY", 0.1)

    def get_connection(conn_id):
        raise RuntimeError("Airflow is not there")

    monkeypatch.setattr(VoiceGenieHook, "get_connection", get_connection)
    result = task()(deferrable=True).resume_execution("execute_complete", {"event": event}, run)
    assert (result["status"], result["statistics"]) == ("completed", None)


# The end of the task from outside.


@both_ways
@pytest.mark.parametrize("pause_on_kill", [True, False])
@pytest.mark.parametrize("campaign_id", ["long", "followed"])
def test_the_execution_timeout_pauses_what_the_task_started(sandbox, way, pause_on_kill, campaign_id):
    def make(*, deferrable):
        task = Starting(
            campaign_id=campaign_id,
            outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"},
            execution_timeout=timedelta(seconds=2),
            pause_on_kill=pause_on_kill,
        )
        return task(deferrable=deferrable)

    run = context()
    if way is in_worker:
        # Airflow raises this in the waiting task.
        with pytest.MonkeyPatch.context() as patch:
            in_wait(patch, is_waiting(sandbox, campaign_id), AirflowTaskTimeout("Timeout"))
            with pytest.raises(AirflowTaskTimeout):
                way(make, run)
    else:
        with pytest.raises(AirflowTaskTimeout, match=r"execution_timeout.*'running'"):
            way(make, run)
    paused = pause_on_kill and campaign_id == "long"
    assert sandbox.status(campaign_id) == ("paused" if paused else "running")
    assert sandbox.request_count("pause") == int(paused)


def in_wait(patch, when, act):
    """Raise an error, or do something, in the sleep of the wait in the worker, once ``when()`` is so."""
    original = worker.time.sleep

    def sleep(seconds):
        original(seconds)
        if when():
            patch.setattr(worker.time, "sleep", original)
            if isinstance(act, BaseException):
                raise act
            act()

    patch.setattr(worker.time, "sleep", sleep)


def test_a_retry_after_the_execution_timeout_does_not_start_again(sandbox):
    store = Store()
    make = Starting(execution_timeout=timedelta(seconds=0.3))
    with pytest.raises(AirflowTaskTimeout):
        deferred(make, context(store))
    with pytest.raises(AirflowFailException, match="clear this task"):
        deferred(make, context(store, try_number=2))
    assert sandbox.start_count("long") == 1
    # Cleared by a user, it starts.
    with pytest.raises(AirflowTaskTimeout):
        deferred(make, context(store, try_number=3, max_tries=4))
    assert sandbox.start_count("long") == 2


@pytest.mark.parametrize("map_index", [-1, 2])
@pytest.mark.parametrize("state", ["running", None, "scheduled", "queued", "up_for_retry"])
def test_a_worker_or_a_scheduler_in_trouble_pauses_nothing(sandbox, state, map_index):
    kill_in_wait(sandbox, state, pause_on_kill=True, map_index=map_index)
    assert sandbox.status("long") == "running"


@pytest.mark.parametrize("state", ["failed", "success", "skipped", "restarting", "deleted"])
@pytest.mark.parametrize("pause_on_kill", [True, False])
def test_a_user_who_ends_the_task_pauses_the_campaign(sandbox, state, pause_on_kill):
    kill_in_wait(sandbox, state, pause_on_kill=pause_on_kill, map_index=-1)
    assert sandbox.status("long") == ("paused" if pause_on_kill else "running")


def kill_in_wait(sandbox, state, *, pause_on_kill, map_index):
    """Have Airflow end a task that waits in a worker, and has another state by then."""
    run = context(Store(), map_index=map_index)
    operator = Starting(pause_on_kill=pause_on_kill)(deferrable=False)

    def kill():
        run["ti"].state = state
        operator.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        in_wait(patch, is_waiting(sandbox, "long"), kill)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)


#: The steps before a start at which a kill may come, in their order, and the requests that were sent by then.
STEPS = ["before execute", "link", "recall", "run facts", "get_conn", "get_campaign", "record", "campaign_id"]


def kill_at(patch, step, operator, run, state="failed", *, tells=True):
    """Let Airflow end the task at one step; it may tell the task at once, or not before the task asks."""
    act, at = {
        "link": (TaskInstance, "xcom_push"),
        "recall": (once.StartRecords, "recall"),
        "run facts": (once.RunFacts, "of"),
        "get_conn": (VoiceGenieHook, "get_conn"),
        "get_campaign": (VoiceGenieHook, "get_campaign"),
        "record": (once.StartRecords, "add"),
        "campaign_id": (TaskInstance, "xcom_push"),
        "start": (VoiceGenieHook, "start_campaign"),
        "phase": (once.StartRecords, "set_phase"),
        "look": (once.StartOnce, "_look_for_start"),
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


@both_ways
@pytest.mark.parametrize("state", ["failed", "running"])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_before_the_start_starts_nothing(sandbox, way, step, state):
    run = context(Store())
    operator = Starting()(deferrable=way is deferred)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step, operator, run, state)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside before it started anything"):
            operator.execute(run)
    # Nor is Airflow asked for anything that takes time: five seconds are left.
    assert ("_link_CampaignLink" in run["ti"].xcom) is (step != "before execute")
    sent = ["get"] if STEPS.index(step) >= STEPS.index("get_campaign") else []
    assert [request.operation for request in sandbox.sandbox.requests] == sent


@both_ways
@pytest.mark.parametrize("step", STEPS)
def test_a_task_that_was_marked_but_not_told_yet_starts_nothing(sandbox, way, step):
    """Airflow tells the process of a task some seconds after a user has marked or cleared it."""
    run = context(Store())
    operator = Starting()(deferrable=way is deferred)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step, operator, run, tells=False)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside before it started anything"):
            operator.execute(run)
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize("step", ["before execute", "get_conn", "task state"])
def test_a_kill_before_a_pause_pauses_nothing(sandbox, step):
    run = context(Store(), state="failed")
    operator = PauseCampaignOperator(task_id="task", campaign_id="followed")
    with pytest.MonkeyPatch.context() as patch:
        if step == "task state":
            patch.setattr(Store, "set", lambda *_: operator.on_kill())
        else:
            kill_at(patch, step, operator, run)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert sandbox.request_count("pause") == 0


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_sensor_that_a_user_ended_asks_no_more(sandbox, state):
    sensor = Following()(deferrable=False)
    sensor.on_kill()
    run = context(state=state)
    if state == "failed":
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            sensor.poke(run)
        assert not sandbox.sandbox.requests
    else:
        # A worker that is going down lets it finish what it is at.
        assert not sensor.poke(run).is_done


@pytest.mark.parametrize(
    ("step", "waits"),
    [*product(["start", "phase"], ["no", "in the worker", "deferred"]), ("deferral", "deferred")],
)
def test_a_kill_right_after_the_start_pauses_the_campaign(sandbox, step, waits):
    run = context(Store())
    operator = Starting(wait_for_completion=waits != "no")(deferrable=waits == "deferred")
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step, operator, run)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "paused")


def test_a_deferral_that_airflow_would_refuse_pauses_the_campaign(sandbox):
    """A user marks the task, which is not told: it ends by itself before it could be."""
    run = context(Store())
    operator = Starting()(deferrable=True)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "phase", operator, run, tells=False)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert sandbox.status("long") == "paused"


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_kill_while_a_lost_start_is_looked_into_ends_that_at_once(sandbox, monkeypatch, state):
    monkeypatch.setattr(once, "_LOOK_DELAYS", (30.0,))
    run = context(Store())
    operator = Starting()(deferrable=False)
    sandbox.inject("close", "start", after_acting=True)

    def kill(seconds):
        run["ti"].state = state
        operator.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(once.time, "sleep", lambda seconds: kill(seconds) if seconds == 30 else None)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert sandbox.status("long") == ("paused" if state == "failed" else "running")


def test_a_kill_during_the_start_lets_it_be_answered_first(sandbox):
    run = context()
    operator = Starting()(deferrable=False)
    sandbox.inject("delay", "start", seconds=0.4, after_acting=True)

    def kill():
        run["ti"].state = "failed"
        operator.on_kill()

    with (
        meanwhile(lambda: sandbox.status("long") == "running", kill),
        pytest.raises(VoiceGenieRetryException),
    ):
        operator.execute(run)
    assert sandbox.status("long") == "paused"


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_kill_before_a_deferred_task_is_resumed(sandbox, state):
    run = context()
    make = Starting(completion_timeout=0.3)
    with pytest.raises(TaskDeferred) as deferral:
        make(deferrable=True).execute(run)
    event = event_of(deferral.value.trigger)
    operator = make(deferrable=True)
    run["ti"].state = state
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.resume_execution("execute_complete", {"event": event}, run)
    assert sandbox.status("long") == ("paused" if state == "failed" else "running")


def test_a_kill_of_a_later_try_before_it_looks_pauses_what_an_earlier_one_started(sandbox):
    store = Store()
    Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    operator = Starting()(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context(store, try_number=2, state="failed"))
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "paused")


@pytest.mark.parametrize("state", ["failed", "running"])
@pytest.mark.parametrize("minutes", [0, -30])
def test_without_a_store_the_service_is_asked_what_a_killed_try_left(sandbox, state, minutes):
    """An earlier try started the campaign; or somebody did, half an hour before the run."""
    run = context(try_number=2)
    started_at = run["dag_run"].start_date + timedelta(minutes=minutes)
    change(sandbox, "long", status="running", started_at=started_at)()
    operator = Starting()(deferrable=False)
    run["ti"].state = state
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(run)
    assert sandbox.status("long") == ("paused" if (state, minutes) == ("failed", 0) else "running")
    assert sandbox.request_count("start") == 0


def test_without_a_store_a_first_try_that_is_killed_has_left_nothing(sandbox):
    operator = Starting()(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="before it started anything"):
        operator.execute(context(state="failed"))
    assert not sandbox.sandbox.requests


def test_a_kill_during_a_late_resume_pauses_the_campaign(sandbox):
    run = context()
    make = Starting(completion_timeout=60)
    with pytest.raises(TaskDeferred):
        make(deferrable=True).execute(run)
    operator = make(deferrable=True)
    sandbox.inject("hold", "get")

    def kill():
        run["ti"].state = "failed"
        operator.on_kill()

    def held(hook, campaign_id, **more):
        kill()
        raise AssertionError("a read is broken off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceGenieHook, "get_campaign", held)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.resume_execution("__fail__", {"error": "Trigger timeout"}, run)
    assert sandbox.status("long") == "paused"


class Airflow2TaskInstance(TaskInstance):
    get_task_states = property()

    def current_state(self):
        return self.state


@pytest.mark.parametrize(
    ("error", "state", "paused"),
    [(AirflowTaskTimeout, "running", True), (RuntimeError, "failed", True), (RuntimeError, "running", False)],
)
def test_airflow_2_ends_a_deferred_task_before_it_resumes_it(sandbox, monkeypatch, error, state, paused):
    run = context()
    make = Starting()
    with pytest.raises(TaskDeferred) as deferral:
        make(deferrable=True).execute(run)
    run["ti"] = Airflow2TaskInstance(**{**vars(run["ti"]), "state": state, "next_method": deferral.value.method_name})
    monkeypatch.setattr(operators, "get_current_context", lambda: run)
    operator = make(deferrable=True)
    operator.campaign_id = "followed"  # what the template gives by now
    try:
        raise error
    except error:
        operator.on_kill()
    assert sandbox.status("long") == ("paused" if paused else "running")
    assert sandbox.status("followed") == "running"


# Tries.


@both_ways
def test_a_later_try_follows_the_start_of_an_earlier_one(sandbox, way):
    store = Store()
    operator = Starting()(deferrable=False)
    with pytest.MonkeyPatch.context() as patch:
        in_wait(patch, lambda: True, RuntimeError("the worker is gone"))
        with pytest.raises(RuntimeError):
            operator.execute(context(store))
    assert sandbox.start_count("long") == 1
    reads = sandbox.request_count("get")
    with meanwhile(lambda: sandbox.request_count("get") >= reads + 3, complete(sandbox, "long")):
        result = way(Starting(), context(store, try_number=2))
    assert (result["status"], result["started_by_task"]) == ("completed", True)
    assert result["started_at"].endswith("Z")
    assert sandbox.start_count("long") == 1
    assert sandbox.api_key not in json.dumps(store)


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_later_try_finds_out_what_became_of_a_start_that_was_cut_off(sandbox, took_effect):
    store = Store()
    sandbox.inject("close", "start", after_acting=took_effect)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(once.StartOnce, "_find_out", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    assert store["voicegenie_start"]["phase"] == "sent"
    result = Starting(wait_for_completion=False)(deferrable=False).execute(context(store, try_number=2))
    assert result["started_by_task"] is True
    assert sandbox.start_count("long") == 1


@pytest.mark.parametrize("status", ["running", "completed", "paused"])
def test_without_a_store_the_statistics_tell_of_a_start_in_this_run(sandbox, status):
    Starting(wait_for_completion=False)(deferrable=False).execute(context())
    sandbox.sandbox.store.change("long", status=status)
    result = Starting(wait_for_completion=False)(deferrable=False).execute(context(try_number=2))
    assert (result["status"], result["started_by_task"]) == (status, True)
    assert sandbox.start_count("long") == 1


@pytest.mark.parametrize("status", ["running", "paused", "completed", "failed"])
def test_without_a_store_old_statistics_are_read_again(sandbox, monkeypatch, status):
    sandbox.sandbox.cache_stats = True
    hook = VoiceGenieHook()
    assert hook.get_campaign_stats("long").started_at is None
    Starting(wait_for_completion=False)(deferrable=False).execute(context())
    change(sandbox, "long", status=status)()
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        sandbox.sandbox.cache_stats = False

    monkeypatch.setattr(once, "_STATISTICS_LAG", timedelta(seconds=32))
    monkeypatch.setattr(once.time, "sleep", sleep)
    result = Starting(wait_for_completion=False)(deferrable=False).execute(context(try_number=2))
    assert (result["status"], result["started_by_task"]) == (status, True)
    assert 30 < waits[0] < 33
    assert sandbox.start_count("long") == 1


@pytest.mark.parametrize("hours", [-5, 5])
@pytest.mark.parametrize("minutes", [-30, -1, 1])
def test_without_a_store_the_clocks_may_differ(sandbox, monkeypatch, hours, minutes):
    difference = timedelta(hours=hours)
    monkeypatch.setattr(VoiceGenieHook, "server_time", lambda self: time.time() + difference.total_seconds())
    run = context(try_number=2)
    started_at = run["dag_run"].start_date + timedelta(minutes=minutes) + difference
    change(sandbox, "long", status="paused", started_at=started_at)()
    result = Starting(wait_for_completion=False)(deferrable=False).execute(run)
    # Half an hour before the run is too long ago to be its start; a minute may be the clocks'.
    was_ours = minutes > -30
    assert (result["status"], sandbox.request_count("start")) == (("paused", 0) if was_ours else ("running", 1))


def test_without_a_store_and_without_the_runs_begin_nothing_is_started(sandbox):
    run = context(try_number=2)
    run["dag_run"].start_date = None
    change(sandbox, "long", status="paused", started_at=datetime.now(UTC))()
    with pytest.raises(AirflowFailException, match="START_UNCONFIRMED"):
        Starting()(deferrable=False).execute(run)
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize("status", ["running", "completed", "stopped"])
def test_without_a_store_and_without_evidence_nothing_is_started(sandbox, status):
    change(sandbox, "long", status=status, started_at=None)()
    sandbox.sandbox.store.find("long").started_at = None
    with pytest.raises(AirflowFailException, match=r"clear this task to start it.*START_UNCONFIRMED"):
        Starting()(deferrable=False).execute(context(try_number=2))
    assert sandbox.request_count("start") == 0


def test_without_a_store_a_campaign_that_was_never_started_is_started_by_a_later_try(sandbox):
    for campaign_id in ("ready", "paused"):
        make = Starting(campaign_id=campaign_id, wait_for_completion=False)
        assert make(deferrable=False).execute(context(try_number=2))["started_by_task"]
        assert sandbox.start_count(campaign_id) == 1


def test_a_paused_campaigns_lost_start_waits_for_statistics_from_after_it(sandbox, monkeypatch):
    sandbox.sandbox.cache_stats = True
    VoiceGenieHook().get_campaign_stats("paused")
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if seconds > 10:
            sandbox.sandbox.cache_stats = False

    store, original = sandbox.sandbox.store, sandbox.sandbox.store.start

    def start_and_pause(campaign_id):
        campaign = original(campaign_id)
        touched = campaign.updated_at
        store.change(campaign_id, status="paused")
        campaign.updated_at = touched
        return campaign

    monkeypatch.setattr(store, "start", start_and_pause)
    monkeypatch.setattr(once, "_STATISTICS_LAG", timedelta(seconds=32))
    monkeypatch.setattr(once.time, "sleep", sleep)
    sandbox.inject("close", "start", after_acting=True)
    result = Starting(campaign_id="paused", wait_for_completion=False)(deferrable=False).execute(context(Store()))
    assert (result["status"], result["started_by_task"]) == ("paused", True)
    assert 25 < max(waits) < 33
    assert sandbox.start_count("paused") == 1


@both_ways
@pytest.mark.parametrize(("status", "condition"), [("failed", "CAMPAIGN_FAILED"), ("stopped", "CAMPAIGN_STOPPED")])
def test_a_later_try_does_not_call_an_end_a_success_that_is_none(sandbox, way, status, condition):
    store = Store()
    Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    change(sandbox, "long", status=status)()
    with pytest.raises(AirflowFailException, match=condition):
        way(Starting(), context(store, try_number=2))


def test_a_start_that_takes_effect_after_its_try_gave_up_is_found_by_the_next(sandbox):
    store = Store()
    make = Starting(wait_for_completion=False)
    sandbox.inject("close", "start")
    with pytest.raises(VoiceGenieRetryException):
        make(deferrable=False).execute(context(store))
    sandbox.sandbox.store.start("long")
    assert make(deferrable=False).execute(context(store, try_number=2))["started_by_task"]
    assert sandbox.request_count("start") == 1


def test_without_a_store_a_task_that_a_user_cleared_may_start_again(sandbox):
    make = Starting(wait_for_completion=False)
    make(deferrable=False).execute(context())
    sandbox.sandbox.store.change("long", status="paused")
    make(deferrable=False).execute(context(try_number=2, max_tries=3))
    assert sandbox.start_count("long") == 2


class UnaskableTaskInstance(TaskInstance):
    """Airflow cannot be asked for the state of the task."""

    def get_task_states(self, *_, **__):
        raise OSError("no database")


def test_where_airflow_cannot_be_asked_a_start_goes_on_and_a_kill_pauses_nothing(sandbox):
    run = context(Store())
    run["ti"] = UnaskableTaskInstance()
    operator = Starting()(deferrable=False)
    with pytest.MonkeyPatch.context() as patch:
        in_wait(patch, is_waiting(sandbox, "long"), operator.on_kill)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "running")


def test_a_task_that_is_only_tried_out_is_not_taken_for_ended(sandbox):
    """`airflow tasks test` of Airflow 2 leaves the state of the task as it was."""
    run = context(state="success", test_mode=True)
    assert Starting(wait_for_completion=False)(deferrable=False).execute(run)["started_by_task"]


def test_a_start_from_before_this_run_is_not_taken_for_ours(sandbox):
    sandbox.sandbox.store.change("followed", started_at=datetime.now(UTC) - timedelta(hours=1))
    with pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"):
        Starting(campaign_id="followed")(deferrable=False).execute(context(try_number=2))


@pytest.mark.parametrize("status", ["running", "paused", "completed"])
@pytest.mark.parametrize("arguments", [{"wait_for_completion": False}, {"completion_timeout": 0.3}], ids=str)
def test_a_task_that_died_before_airflow_knew_of_its_end_does_not_start_again(sandbox, status, arguments):
    store = Store()
    make = Starting(**arguments)
    with contextlib.suppress(AirflowFailException):
        make(deferrable=False).execute(context(store))
    change(sandbox, "long", status=status)()
    with contextlib.suppress(AirflowFailException):
        assert make(deferrable=False).execute(context(store, try_number=2))["started_by_task"]
    assert sandbox.request_count("start") == 1


def test_a_task_that_a_user_cleared_may_start_again(sandbox):
    store = Store()
    make = Starting(wait_for_completion=False)
    make(deferrable=False).execute(context(store))
    sandbox.sandbox.store.change("long", status="paused")
    make(deferrable=False).execute(context(store, try_number=2, max_tries=3))
    assert sandbox.start_count("long") == 2


def test_a_task_that_a_user_cleared_waits_for_the_pause_that_follows(sandbox):
    store = Store()
    with pytest.raises(TaskDeferred):
        Starting()(deferrable=True).execute(context(store))
    reads = sandbox.request_count("get")
    with (
        meanwhile(lambda: sandbox.request_count("get") >= reads + 2, change(sandbox, "long", status="paused")),
        pytest.raises(TaskDeferred),
    ):
        Starting()(deferrable=True).execute(context(store, try_number=2, max_tries=3))
    assert sandbox.start_count("long") == 2


def test_a_cleared_task_does_not_wait_for_a_pause_for_ever(sandbox, monkeypatch):
    monkeypatch.setattr(once, "_PATIENCE_FOR_PAUSE", 0.1)
    store = Store()
    make = Starting()
    with pytest.raises(TaskDeferred):
        make(deferrable=True).execute(context(store))
    with pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"):
        make(deferrable=True).execute(context(store, try_number=2, max_tries=3))
    assert sandbox.start_count("long") == 1


def test_what_was_found_out_about_a_start_is_kept(sandbox):
    store = Store()
    sandbox.inject("close", "start", after_acting=True)
    Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    sandbox.sandbox.store.change("long", status="stopped")
    sandbox.inject("status", "stats", status=403, times=None)
    with pytest.raises(AirflowFailException, match="CAMPAIGN_STOPPED"):
        Starting()(deferrable=False).execute(context(store, try_number=2))


def test_a_kill_after_a_start_was_found_not_to_have_taken_effect_pauses_nothing(sandbox):
    store = Store()
    sandbox.inject("close", "start")
    with pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
        Starting()(deferrable=False).execute(context(store))
    operator = Starting()(deferrable=False)
    run = context(store, try_number=2)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "record", operator, run)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert (sandbox.request_count("start"), sandbox.request_count("pause")) == (1, 0)


@pytest.mark.parametrize("store", [Store(), None])
def test_a_user_who_ends_a_later_try_pauses_what_an_earlier_one_started(sandbox, store):
    Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    operator = Starting()(deferrable=False)
    with pytest.MonkeyPatch.context() as patch:
        in_wait(patch, is_waiting(sandbox, "long"), operator.on_kill)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(context(store, try_number=2, state="failed"))
    assert sandbox.status("long") == "paused"


def test_after_a_refusal_the_next_try_looks_for_no_start(sandbox):
    sandbox.inject("status", "start", status=429, times=1)
    store = Store()
    operator = Starting(wait_for_completion=False)(deferrable=False)
    with pytest.raises(VoiceGenieRetryException, match="RATE_LIMIT_EXCEEDED"):
        operator.execute(context(store))
    assert sandbox.request_count("get") == 1
    assert operator.execute(context(store, try_number=2))["started_by_task"]
    assert (sandbox.request_count("get"), sandbox.request_count("stats"), sandbox.request_count("start")) == (2, 0, 2)


def test_a_start_that_cannot_be_noted_is_not_sent(sandbox):
    class Broken(Store):
        def set(self, key, value):
            raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        Starting()(deferrable=False).execute(context(Broken()))
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize("state", ["restarting", "failed"])
def test_after_a_user_ended_a_running_task_the_next_try_may_start(sandbox, state):
    """A task that is cleared while it runs becomes another try of the same task, with the same number of tries."""
    store = Store()
    run = context(store)
    operator = Starting()(deferrable=False)

    def kill():
        run["ti"].state = state
        operator.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        in_wait(patch, is_waiting(sandbox, "long"), kill)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)
    assert store["voicegenie_start"]["phase"] == "closed"
    assert Starting(wait_for_completion=False)(deferrable=False).execute(context(store, try_number=2))[
        "started_by_task"
    ]
    assert sandbox.start_count("long") == 2


@both_ways
def test_a_campaign_of_others_that_is_followed_is_not_paused_by_a_kill(sandbox, way):
    """Someone started it right before the task could, and the service refused the task's own start."""
    body = '{"success": false, "message": "Campaign is already running", "error": "CAMPAIGN_ALREADY_RUNNING"}'
    sandbox.inject("status", "start", status=400, body=body)
    run = context(Store())
    operator = Starting(outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"})(deferrable=way is deferred)

    def start_campaign(hook, campaign_id, original=VoiceGenieHook.start_campaign):
        change(sandbox, campaign_id, status="running")()
        return original(hook, campaign_id)

    def kill():
        run["ti"].state = "failed"
        operator.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceGenieHook, "start_campaign", start_campaign)
        if way is deferred:
            with pytest.raises(TaskDeferred) as deferral:
                operator.execute(run)
            assert deferral.value.trigger.serialize()[1]["pause_on_kill"] is False
        else:
            in_wait(patch, is_waiting(sandbox, "long"), kill)
            with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
                operator.execute(run)
    assert sandbox.status("long") == "running"
    assert sandbox.request_count("pause") == 0


# When Airflow itself ends a deferral.


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"execution_timeout": timedelta(seconds=100)}, 160),
        ({"completion_timeout": 50}, 110),
        ({"completion_timeout": 50, "execution_timeout": timedelta(seconds=100)}, 110),
        ({"completion_timeout": 500, "execution_timeout": timedelta(seconds=100)}, 160),
        ({}, None),
    ],
)
def test_airflow_ends_a_deferral_a_minute_after_the_first_limit(sandbox, limits, seconds):
    """Where no triggerer runs, nobody else does."""
    with pytest.raises(TaskDeferred) as deferral:
        Starting(**limits)(deferrable=True).execute(context())
    timeout = deferral.value.timeout
    assert (timeout and timeout.total_seconds()) == (seconds and pytest.approx(seconds, abs=5))


def test_airflow_ends_the_deferral_of_a_sensor_too(sandbox):
    for limits, seconds in (
        ({"timeout": 50}, 110),
        ({"timeout": 500, "execution_timeout": timedelta(seconds=100)}, 160),
    ):
        with pytest.raises(TaskDeferred) as deferral:
            Following(**limits)(deferrable=True).execute(context())
        assert deferral.value.timeout.total_seconds() == pytest.approx(seconds, abs=5)


@pytest.mark.parametrize("text", ["Trigger/execution timeout", "Trigger timeout"])
def test_a_deferral_that_no_triggerer_ended_in_time(sandbox, text):
    run = context()
    make = Starting(completion_timeout=60)
    with pytest.raises(TaskDeferred):
        make(deferrable=True).execute(run)
    with pytest.raises(AirflowFailException, match="COMPLETION_TIMEOUT"):
        make(deferrable=True).resume_execution("__fail__", {"error": text}, run)
    assert sandbox.status("long") == "running"
    sandbox.sandbox.store.change("long", status="completed")
    result = make(deferrable=True).resume_execution("__fail__", {"error": text}, run)
    assert (result["status"], result["started_by_task"]) == ("completed", True)


def test_a_deferral_that_no_triggerer_ended_before_the_execution_timeout(sandbox):
    run = context()
    make = Starting(execution_timeout=timedelta(seconds=5))
    with pytest.raises(TaskDeferred):
        make(deferrable=True).execute(run)
    run["ti"].start_date -= timedelta(seconds=10)
    with pytest.raises(AirflowTaskTimeout):
        make(deferrable=True).resume_execution("__fail__", {"error": "Trigger timeout"}, run)
    assert sandbox.status("long") == "paused"


def test_a_trigger_that_broke_fails_the_task(sandbox):
    run = context()
    with pytest.raises(TaskDeferred):
        Starting()(deferrable=True).execute(run)
    with pytest.raises(Exception, match="Trigger failure"):
        Starting()(deferrable=True).resume_execution("__fail__", {"error": "Trigger failure"}, run)


@pytest.mark.parametrize("is_over", [True, False])
def test_a_sensor_whose_deferral_no_triggerer_ended_in_time(sandbox, is_over):
    if is_over:
        sandbox.sandbox.store.change("followed", status="completed")
        result = Following()(deferrable=True).resume_execution("__fail__", {"error": "Trigger timeout"}, context())
        assert result["status"] == "completed"
    else:
        with pytest.raises(AirflowSensorTimeout):
            Following()(deferrable=True).resume_execution("__fail__", {"error": "Trigger timeout"}, context())


# What is stored, and arguments.


@pytest.mark.parametrize("make", [Starting(), Following()])
def test_no_secret_is_stored(sandbox, make):
    run = context()
    with pytest.raises(TaskDeferred) as deferral:
        make(deferrable=True).execute(run)
    # The one place in which the sandbox's address is meant to be.
    assert run["ti"].xcom.pop("_link_CampaignLink").startswith(sandbox.url)
    assert run["ti"].xcom["voicegenie_task"]["campaign_id"] == make.campaign_id
    kept = json.dumps([deferral.value.trigger.serialize(), deferral.value.kwargs, run["ti"].xcom])
    assert sandbox.api_key not in kept
    assert sandbox.url not in kept


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"min_success_rate": 0.5}, "min_success_rate"),
        ({"poll_interval": 0}, "poll_interval"),
        ({"poll_interval": "60"}, "poll_interval"),
        ({"completion_timeout": -1}, "completion_timeout"),
        ({"stall_timeout": float("nan")}, "stall_timeout"),
        ({"min_success_rate": 101}, "min_success_rate"),
        ({"min_success_rate": True}, "min_success_rate"),
        ({"wait_for_completion": "yes"}, "wait_for_completion"),
        ({"deferrable": 1}, "deferrable"),
        ({"pause_on_kill": None}, "pause_on_kill"),
        ({"outcomes": {"COMPLETION_TIMEOUT": "wait"}}, "COMPLETION_TIMEOUT"),
        ({"outcomes": {"SUCCESS_RATE_TOO_LOW": "wait"}}, "SUCCESS_RATE_TOO_LOW"),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments, named):
    with pytest.raises(ValueError, match=named):
        StartCampaignOperator(**{"task_id": "t", "campaign_id": "c", "wait_for_completion": True, **arguments})
    if named in ("stall_timeout", "min_success_rate", "deferrable", "SUCCESS_RATE_TOO_LOW"):
        with pytest.raises(ValueError, match=named):
            CampaignCompletedSensor(**{"task_id": "t", "campaign_id": "c", **arguments})


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("cls", [StartCampaignOperator, CampaignCompletedSensor, CampaignReadySensor])
def test_airflows_default_decides_whether_to_defer(monkeypatch, cls, default):
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", str(default))
    assert cls(task_id="t", campaign_id="c").deferrable is default
    assert cls(task_id="t", campaign_id="c", deferrable=not default).deferrable is not default
