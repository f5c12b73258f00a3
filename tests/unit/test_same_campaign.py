# SPDX-License-Identifier: Apache-2.0
"""
What a task is about stays what it is about, though its templates give something else by now.

Airflow renders a task's templates anew whenever another process goes on with it: at a retry, when it is resumed after a
deferral, at each poke of a rescheduled sensor. Here, each such process gets an operator of its own with other values.
"""

from __future__ import annotations

import contextlib
import json
import logging
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowTaskTimeout,
    TaskDeferred,
)
from helpers.clock import now
from helpers.tasks import Store, TaskInstance, context, event_of

from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor, CampaignReadySensor
from airflow_provider_voicegenie.start import take_over
from airflow_provider_voicegenie.timing import timing

TIMEOUT = {"COMPLETION_TIMEOUT": "succeed"}

#: What the templates give at first, and later: another campaign, another connection, or both.
FIRST = {"campaign_id": "ours", "voicegenie_conn_id": "voicegenie_default"}
LATER = {
    "another campaign": {"campaign_id": "theirs"},
    "another connection": {"voicegenie_conn_id": "elsewhere"},
    "both": {"campaign_id": "theirs", "voicegenie_conn_id": "elsewhere"},
    "no id": {"campaign_id": "None"},
    "the same": {},
}
change = pytest.mark.parametrize("later", LATER.values(), ids=LATER)


@pytest.fixture
def sandbox(clock, voicegenie_sandbox, monkeypatch):
    connection = voicegenie_sandbox.connection(max_attempts=1, timeout=60, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    # It is not asked anything, and would fail whoever did.
    monkeypatch.setenv(
        "AIRFLOW_CONN_ELSEWHERE", json.dumps({"conn_type": "voicegenie", "host": "http://127.0.0.1:1", "password": "k"})
    )
    voicegenie_sandbox.add_campaign(id="ours", total_count=10_000)
    voicegenie_sandbox.add_campaign(id="theirs", status="running", total_count=20_000)
    return voicegenie_sandbox


@pytest.fixture(autouse=True)
def nothing_of_theirs_is_touched(sandbox):
    yield
    touched = [request for request in sandbox.sandbox.requests if request.campaign_id == "theirs"]
    assert not touched
    assert sandbox.status("theirs") == "running"


def starting(later=None, **arguments):
    fields = {**FIRST, **(later or {})}
    return StartCampaignOperator(
        **{
            "task_id": "task",
            "wait_for_completion": True,
            "deferrable": True,
            "poll_interval": 0.1,
            **fields,
            **arguments,
        }
    )


def completed(later=None, **arguments):
    return CampaignCompletedSensor(
        **{"task_id": "task", "deferrable": True, "poke_interval": 0.1, **FIRST, **(later or {}), **arguments}
    )


def ready(later=None, **arguments):
    return CampaignReadySensor(
        **{"task_id": "task", "deferrable": True, "poke_interval": 0.1, **FIRST, **(later or {}), **arguments}
    )


def defer(operator, run):
    with pytest.raises(TaskDeferred) as deferral:
        operator.execute(run)
    return deferral.value


def end(sandbox, **changes):
    sandbox.sandbox.store.change("ours", **{"status": "completed", "ended_at": now(), **changes})


def said(caplog):
    return [record.getMessage() for record in caplog.records if "which it first looked at" in record.getMessage()]


# The wait in the triggerer is over.


@change
def test_a_start_is_resumed(sandbox, caplog, later):
    run = context()
    deferral = defer(starting(), run)
    end(sandbox)
    operator = starting(later)
    caplog.set_level(logging.WARNING)
    result = operator.resume_execution("execute_complete", {"event": event_of(deferral.trigger)}, run)
    assert (result["campaign_id"], result["status"], result["started_by_task"]) == ("ours", "completed", True)
    assert result["statistics"]["total_contacts"] == 10_000
    assert (operator.campaign_id, operator.voicegenie_conn_id) == tuple(FIRST.values())
    assert len(said(caplog)) == len(later)
    # Airflow's UI shows the values that count, where they are not those that it has rendered.
    assert bool(getattr(operator, "overwrite_rtif_after_execution", False)) is bool(later)


@pytest.mark.parametrize(
    ("arguments", "run", "seconds"),
    [
        ({}, {"try_number": 2, "max_tries": 3}, 20),
        # No pause can come: no kill pauses, a retry follows no clear, and no try came before the first.
        ({"pause_on_kill": False}, {"try_number": 2, "max_tries": 3}, 0),
        ({"wait_for_completion": False}, {"try_number": 2, "max_tries": 3}, 0),
        ({}, {"try_number": 2}, 0),
        ({}, {}, 0),
    ],
)
def test_a_pause_of_an_unknown_campaign_has_time_before_the_next_start(
    sandbox, clock, monkeypatch, arguments, run, seconds
):
    """Airflow 3.4 deletes with the clear which campaign the task had started."""
    monkeypatch.setattr(take_over, "_FORGETS_AT_CLEAR", True)
    with contextlib.suppress(TaskDeferred):
        starting({"campaign_id": "ready"}, retries=2, **arguments).execute(context(Store(), **run))
    assert sandbox.start_count("ready") == 1
    assert sum(clock.sleeps) == seconds


def test_it_has_that_time_once(sandbox, clock, monkeypatch):
    """Not again after each 429, and not before Airflow 3.4, which forgets nothing."""
    connection = sandbox.connection(max_attempts=5, timeout=60, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    clock.limit = 2000
    run, arguments = {"try_number": 2, "max_tries": 3}, {"deferrable": False, "completion_timeout": 0.1}
    for forgets, times in ((True, 1), (False, 0)):
        monkeypatch.setattr(take_over, "_FORGETS_AT_CLEAR", forgets)
        sandbox.sandbox.store.change("ours", status="paused")
        sandbox.inject("status", "start", status=429, headers={"Retry-After": "1"}, times=2)
        clock.sleeps.clear()
        starting(retries=2, outcomes=TIMEOUT, **arguments).execute(context(Store(), **run))
        assert clock.sleeps.count(20) == times
        assert len(clock.sleeps) >= 2


@change
@pytest.mark.parametrize("make", [completed, ready])
def test_a_sensor_is_resumed(sandbox, make, later):
    sandbox.sandbox.store.change("ours", **({"status": "running"} if make is completed else {"script_id": None}))
    run = context()
    deferral = defer(make(), run)
    if make is completed:
        end(sandbox)
    else:
        sandbox.sandbox.store.change("ours", script_id="s")
    result = make(later).resume_execution("execute_complete", {"event": event_of(deferral.trigger)}, run)
    assert result["campaign_id"] == "ours"
    numbers = result["statistics"]["total_contacts"] if make is completed else result["total_count"]
    assert numbers == 10_000


@change
def test_messages_are_about_the_right_campaign(sandbox, later):
    run = context()
    deferral = defer(starting(), run)
    end(sandbox, status="stopped")
    with pytest.raises(AirflowFailException, match=r"Campaign 'ours': it was stopped"):
        starting(later).resume_execution("execute_complete", {"event": event_of(deferral.trigger)}, run)
    run = context()
    sandbox.sandbox.store.change("ours", status="running")
    deferral = defer(completed(timeout=0), run)
    with pytest.raises(AirflowSensorTimeout, match="Campaign 'ours'"):
        completed(later).resume_execution("execute_complete", {"event": event_of(deferral.trigger)}, run)


@change
def test_the_link_leads_to_the_right_campaign(sandbox, later):
    run = context()
    deferral = defer(starting(), run)
    end(sandbox)
    operator = starting(later)
    operator.resume_execution("execute_complete", {"event": event_of(deferral.trigger)}, run)
    # What Airflow stores at the end of a task are the links that the task has then.
    assert list(operator.operator_extra_links) == []
    assert run["ti"].xcom["_link_CampaignLink"] == f"{sandbox.url}/#campaign-ours"


def test_an_id_that_a_subclass_found_in_execute_is_a_fact_too(sandbox):
    class Finding(StartCampaignOperator):
        def execute(self, context):
            self.campaign_id = "ours"
            return super().execute(context)

    def make():
        return Finding(
            task_id="task", campaign_id="unknown", wait_for_completion=True, deferrable=True, poll_interval=0.1
        )

    run = context()
    deferral = defer(make(), run)
    end(sandbox)
    result = make().resume_execution("execute_complete", {"event": event_of(deferral.trigger)}, run)
    assert (result["campaign_id"], result["statistics"]["total_contacts"]) == ("ours", 10_000)


@change
def test_a_sensor_that_defers_again_waits_for_the_right_campaign(sandbox, later, monkeypatch):

    monkeypatch.setattr(timing, "invalid_statistics_patience", 0.0)
    sandbox.sandbox.store.change("ours", status="running")
    run = context()
    deferral = defer(completed(min_success_rate=0, timeout=60), run)
    end(sandbox)
    # In the triggerer, and in the worker.
    sandbox.inject("not_json", "stats", times=2)
    with pytest.raises(TaskDeferred) as again:
        completed(later, min_success_rate=0).resume_execution(
            "execute_complete", {"event": event_of(deferral.trigger)}, run
        )
    (_, first), (_, second) = deferral.trigger.serialize(), again.value.trigger.serialize()
    for name in (*FIRST, "deadline"):
        assert second[name] == first[name]


# Airflow ended the deferral: what the trigger knows is lost.


@change
@pytest.mark.parametrize("status", ["completed", "running"])
def test_a_start_is_resumed_late(sandbox, later, status):
    run = context()
    defer(starting(completion_timeout=60), run)
    end(sandbox, status=status)
    operator = starting(later, completion_timeout=60)
    if status == "completed":
        result = operator.resume_execution("__fail__", {"error": "Trigger timeout"}, run)
        assert (result["campaign_id"], result["statistics"]["total_contacts"]) == ("ours", 10_000)
    else:
        with pytest.raises(AirflowFailException, match=r"Campaign 'ours'.*COMPLETION_TIMEOUT"):
            operator.resume_execution("__fail__", {"error": "Trigger timeout"}, run)


@change
@pytest.mark.parametrize("text", ["Trigger timeout", "Trigger/execution timeout"])
def test_an_execution_timeout_that_airflow_noticed_pauses_the_right_campaign(sandbox, later, text):
    run = context()
    defer(starting(execution_timeout=timedelta(seconds=5)), run)
    run["ti"].start_date -= timedelta(seconds=10)
    with pytest.raises(AirflowTaskTimeout, match="Campaign 'ours'"):
        starting(later, execution_timeout=timedelta(seconds=5)).resume_execution("__fail__", {"error": text}, run)
    assert sandbox.status("ours") == "paused"


@change
@pytest.mark.parametrize("make", [completed, ready])
def test_a_sensor_is_resumed_late(sandbox, make, later):
    sandbox.sandbox.store.change("ours", **({"status": "running"} if make is completed else {"script_id": None}))
    run = context()
    defer(make(), run)
    with pytest.raises(AirflowSensorTimeout, match="Campaign 'ours'"):
        make(later).resume_execution("__fail__", {"error": "Trigger timeout"}, run)
    if make is completed:
        end(sandbox)
    else:
        sandbox.sandbox.store.change("ours", script_id="s")
    result = make(later).resume_execution("__fail__", {"error": "Trigger timeout"}, run)
    assert result["campaign_id"] == "ours"


def test_a_start_whose_facts_are_lost_says_what_to_do(sandbox):
    run = context()
    defer(starting(), run)
    run["ti"].xcom.clear()
    with pytest.raises(AirflowFailException, match=r"has lost what this task remembered.*pause it"):
        starting().resume_execution("__fail__", {"error": "Trigger timeout"}, run)


# The end from outside.


@change
def test_a_kill_after_the_wait_pauses_the_right_campaign(sandbox, later):
    run = context()
    deferral = defer(starting(completion_timeout=0.1), run)
    event = event_of(deferral.trigger)
    operator = starting(later)
    run["ti"].state = "failed"
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.resume_execution("execute_complete", {"event": event}, run)
    assert sandbox.status("ours") == "paused"


@change
def test_an_execution_timeout_after_the_wait_pauses_the_right_campaign(sandbox, later):
    run = context()
    deferral = defer(starting(execution_timeout=timedelta(seconds=0.5)), run)
    with pytest.raises(AirflowTaskTimeout, match="Campaign 'ours'"):
        starting(later).resume_execution("execute_complete", {"event": event_of(deferral.trigger)}, run)
    assert sandbox.status("ours") == "paused"


# Later tries, and pokes, where Airflow keeps a task's state.


@pytest.mark.parametrize("later", [LATER[name] for name in LATER if name != "the same"], ids=str)
@pytest.mark.parametrize("phase", ["sent", "started", "timed_out"])
def test_a_retry_about_another_campaign_starts_nothing_and_names_both(sandbox, later, phase):
    store = Store()
    starting(wait_for_completion=False).execute(context(store))
    store["voicegenie_task"]["start"]["phase"] = phase
    sent = len(sandbox.sandbox.requests)
    with pytest.raises(AirflowFailException, match="'ours'") as caught:
        starting(later).execute(context(store, try_number=2))
    for value in (*FIRST.values(), *later.values()):
        assert repr(value) in str(caught.value)
    assert len(sandbox.sandbox.requests) == sent
    assert sandbox.status("ours") == "running"


def test_a_retry_after_a_refusal_may_be_about_another_campaign(sandbox):
    store = Store()
    sandbox.inject("status", "start", status=429)
    with pytest.raises(VoiceGenieRetryException):
        starting({"campaign_id": "ready"}).execute(context(store))
    assert defer(starting(), context(store, try_number=2)).trigger.campaign_id == "ours"


def test_a_task_that_a_user_cleared_may_be_about_another_campaign(sandbox):
    store = Store()
    starting({"campaign_id": "ready"}, wait_for_completion=False).execute(context(store))
    result = starting(wait_for_completion=False).execute(context(store, try_number=2, max_tries=3))
    assert (result["campaign_id"], sandbox.start_count("ours")) == ("ours", 1)


@change
@pytest.mark.parametrize("make", [completed, ready])
@pytest.mark.parametrize("mode", ["reschedule", "poke"])
def test_a_later_poke_or_try_of_a_sensor(sandbox, make, later, mode):
    sandbox.sandbox.store.change("ours", **({"status": "running"} if make is completed else {"script_id": None}))
    store = Store()
    assert not make(deferrable=False, mode=mode).poke(context(store)).is_done
    later_sensor = make(later, deferrable=False, mode=mode)
    assert not later_sensor.poke(context(store, try_number=2)).is_done
    assert later_sensor.campaign_id == "ours"
    if make is completed:
        end(sandbox)
    else:
        sandbox.sandbox.store.change("ours", script_id="s")
    assert make(later, deferrable=False, mode=mode).poke(context(store)).xcom_value["campaign_id"] == "ours"


def test_sensor_that_has_read_no_campaign_follows_its_template(sandbox):
    store = Store()
    with pytest.raises(VoiceGenieRetryException):
        ready({"campaign_id": "nobody"}, outcomes={"NOT_FOUND": "retry"}).poke(context(store))
    assert ready().poke(context(store, try_number=2)).xcom_value["campaign_id"] == "ours"
    # Cleared by a user, it begins anew.
    assert ready({"campaign_id": "ready"}).poke(context(store, max_tries=3)).xcom_value["campaign_id"] == "ready"


@change
def test_a_later_try_of_a_pause(sandbox, later):
    def pause(later=None):
        return PauseCampaignOperator(**{"task_id": "task", **FIRST, **(later or {})})

    sandbox.sandbox.store.change("ours", status="running")
    store = Store()
    sandbox.inject("close", "pause")
    with pytest.raises(VoiceGenieRetryException):
        pause().execute(context(store))
    assert pause(later).execute(context(store, try_number=2))["campaign_id"] == "ours"
    assert sandbox.status("ours") == "paused"


class BrokenStore(Store):
    """Airflow cannot be asked."""

    def set(self, key, value):
        raise OSError("no database")


def test_sensor_and_pause_go_on_if_the_task_state_store_fails(sandbox):
    store = BrokenStore()
    assert ready(deferrable=False).poke(context(store)).is_done
    sandbox.sandbox.store.change("ours", status="running")
    result = PauseCampaignOperator(task_id="task", **FIRST).execute(context(store))
    assert result["status"] == "paused"


def test_a_pause_does_not_guess_what_an_earlier_try_was_about(sandbox, monkeypatch):
    def get(store, key, default=None):
        raise OSError("no database")

    monkeypatch.setattr(Store, "get", get)
    with pytest.raises(OSError, match="no database"):
        PauseCampaignOperator(task_id="task", **FIRST).execute(context(Store(), try_number=2))
    assert not sandbox.sandbox.requests


@pytest.mark.parametrize(
    "first", [{"campaign_id": "None"}, {"campaign_id": "nobody"}, {"voicegenie_conn_id": "elsewhere"}]
)
def test_pause_that_reached_no_campaign_follows_its_template(sandbox, first):
    store = Store()
    sandbox.sandbox.store.change("ours", status="running")
    outcomes = {"INVALID_CAMPAIGN_ID": "retry", "NOT_FOUND": "retry"}
    with pytest.raises(VoiceGenieRetryException):
        PauseCampaignOperator(**{"task_id": "task", "outcomes": outcomes, **FIRST, **first}).execute(context(store))
    PauseCampaignOperator(task_id="task", **FIRST).execute(context(store, try_number=2))
    assert sandbox.status("ours") == "paused"


@change
def test_a_kill_of_a_later_try_pauses_what_an_earlier_one_started(sandbox, later):
    store = Store()
    starting(wait_for_completion=False).execute(context(store))
    operator = starting(later)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context(store, try_number=2, state="failed"))
    assert sandbox.status("ours") == "paused"


# What else is kept.


def test_the_id_is_an_xcom_before_a_start_is_sent(sandbox, monkeypatch):
    """Whoever has to pause the campaign finds it, whatever becomes of the task."""
    run = context()
    sandbox.inject("close", "start", after_acting=True)
    sandbox.inject("close", "get", campaign_id="nobody")
    original = TaskInstance.xcom_push
    sent = []

    def xcom_push(task_instance, key, value):
        original(task_instance, key, value)
        if key == "campaign_id":
            sent.append(sandbox.request_count("start"))

    monkeypatch.setattr(TaskInstance, "xcom_push", xcom_push)
    starting(wait_for_completion=False).execute(run)
    assert (sent, run["ti"].xcom["campaign_id"]) == ([0], "ours")


def test_an_id_that_cannot_be_kept_is_not_started(sandbox, monkeypatch):
    def xcom_push(task_instance, key, value):
        raise OSError("no database")

    monkeypatch.setattr(TaskInstance, "xcom_push", xcom_push)
    with pytest.raises(OSError, match="no database"):
        starting().execute(context())
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize(
    "cls", [StartCampaignOperator, PauseCampaignOperator, CampaignReadySensor, CampaignCompletedSensor]
)
def test_each_field_of_a_result_is_an_xcom(cls):
    assert cls(task_id="t", campaign_id="c").multiple_outputs is True
    assert cls(task_id="t", campaign_id="c", multiple_outputs=False).multiple_outputs is False
    assert cls(task_id="t", campaign_id="c", default_args={"multiple_outputs": False}).multiple_outputs is False
