# SPDX-License-Identifier: Apache-2.0
"""Deferrals that Airflow itself ends, as no triggerer did in time, and resumes for which it has lost the XComs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowTaskTimeout,
    TaskDeferred,
)
from helpers.tasks import (
    Following,
    Starting,
    Store,
    complete,
    context,
    event_of,
)

from airflow_provider_voicegenie.memory import Memory
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor


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


@pytest.mark.parametrize("limit", ["deadline", "execution_deadline"])
def test_a_triggerer_that_comes_after_the_deadline_hides_no_completion(sandbox, clock, limit):
    """It ends the wait before it has read anything; the task reads once more, as it does without a triggerer."""
    run = context()
    with pytest.raises(TaskDeferred) as deferral:
        Starting(completion_timeout=50)(deferrable=True).execute(run)
    trigger = deferral.value.trigger
    complete(sandbox, "long")()
    setattr(trigger, limit, clock.time() - 5)
    event = event_of(trigger)
    assert event["reason"] in ("timeout", "execution_timeout")
    result = Starting(completion_timeout=50)(deferrable=True).execute_complete(run, event)
    assert result["status"] == "completed"


def test_a_triggerer_that_comes_after_the_deadline_hides_no_readiness(sandbox, clock):
    def sensor():
        return CampaignReadySensor(task_id="ready", campaign_id="paused", timeout=50, poke_interval=60, deferrable=True)

    sandbox.sandbox.store.change("paused", script_id=None)
    run = context()
    with pytest.raises(TaskDeferred) as deferral:
        sensor().execute(run)
    sandbox.sandbox.store.change("paused", script_id="script-1")
    deferral.value.trigger.deadline = clock.time() - 5
    event = event_of(deferral.value.trigger)
    assert (event["reason"], event["result"]) == ("timeout", None)
    assert sensor().execute_complete(run, event)["status"] == "paused"


def test_a_wait_before_the_start_that_takes_too_long_started_nothing(sandbox):
    run = context()
    facts = {"campaign_id": "long", "voicegenie_conn_id": "voicegenie_default"}
    Memory(run).write_copy(**facts, wait={"refusals": [0, 0, 0]})
    with pytest.raises(AirflowTaskTimeout, match=r"before the campaign could be started; nothing was started\."):
        Starting()(deferrable=True).resume_execution("__fail__", {"error": "Trigger/execution timeout"}, run)
    assert sandbox.request_count("start") == 0


@pytest.fixture(params=[Store, lambda: None], ids=["3.3", "before"])
def lost(request):
    """A run whose XComs are lost, and cannot be asked for."""
    run = context(request.param())

    def lose():
        run["ti"].xcom_pull = lambda **_: 1 / 0

    return run, lose


def test_a_resume_needs_no_xcom(sandbox, lost):
    """The event has what a task needs to go on, as its campaign may call on."""
    run, lose = lost
    with pytest.raises(TaskDeferred) as deferral:
        Starting()(deferrable=True).execute(run)
    complete(sandbox, "long")()
    event = event_of(deferral.value.trigger)
    lose()
    result = Starting(campaign_id="other")(deferrable=True).resume_execution("execute_complete", {"event": event}, run)
    assert (result["campaign_id"], result["status"], result["started_by_task"]) == ("long", "completed", True)
    assert sandbox.start_count("long") == 1


def test_execution_timeout_pauses_without_xcom(sandbox, lost):
    run, lose = lost
    make = Starting(execution_timeout=timedelta(seconds=5))
    with pytest.raises(TaskDeferred) as deferral:
        make(deferrable=True).execute(run)
    event = event_of(deferral.value.trigger)
    lose()
    with pytest.raises(AirflowTaskTimeout):
        make(deferrable=True).resume_execution("execute_complete", {"event": event}, run)
    assert sandbox.status("long") == "paused"


def test_a_kill_of_a_resumed_task_pauses_without_xcom(sandbox, lost):
    run, lose = lost
    with pytest.raises(TaskDeferred) as deferral:
        Starting(completion_timeout=5)(deferrable=True).execute(run)
    event = event_of(deferral.value.trigger)
    lose()
    run["ti"].state = "failed"
    operator = Starting()(deferrable=True)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.resume_execution("execute_complete", {"event": event}, run)
    assert sandbox.status("long") == "paused"


def test_a_sensor_needs_no_xcom(sandbox, lost):
    run, lose = lost
    with pytest.raises(TaskDeferred) as deferral:
        Following()(deferrable=True).execute(run)
    complete(sandbox, "followed")()
    event = event_of(deferral.value.trigger)
    lose()
    result = Following()(deferrable=True).resume_execution("execute_complete", {"event": event}, run)
    assert result["campaign_id"] == "followed"
