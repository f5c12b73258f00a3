# SPDX-License-Identifier: Apache-2.0
"""Campaigns that pause themselves at night and go on by themselves the next day."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from helpers.clock import now
from helpers.tasks import (
    Starting,
    Store,
    both_ways,
    change,
    context,
    deferred,
    event_of,
    in_wait,
    is_waiting,
    meanwhile,
)

from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.campaign import CallingHours, PauseCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, VoiceGenieRetryException
from airflow_provider_voicegenie.start import send
from airflow_provider_voicegenie.timing import timing
from airflow_provider_voicegenie.waiting import wait

MAY_GO_ON = "If it has a daily schedule, it goes on by itself at its next start time"
TOMORROW = {"outcomes": {"CAMPAIGN_ALREADY_RUNNING": "succeed"}}


def end_in_wait(sandbox, operator, run, act):
    """Let a user end a task that waits in a worker, after the campaign has done something."""

    def end():
        act()
        run["ti"].state = "failed"
        operator.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        in_wait(patch, is_waiting(sandbox, "long"), end)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
            operator.execute(run)


def test_a_pause_of_what_is_paused_already_warns(sandbox, caplog):
    PauseCampaignOperator(task_id="pause", campaign_id="paused").execute(context())
    (warning,) = [record for record in caplog.records if MAY_GO_ON in record.getMessage()]
    assert warning.levelname == "WARNING"
    assert "keep it paused with PauseCampaignOperator(keep_paused_for=...)" in warning.getMessage()
    caplog.clear()
    PauseCampaignOperator(task_id="pause", campaign_id="followed").execute(context())
    assert MAY_GO_ON not in caplog.text


def test_a_kill_at_night_warns_and_the_next_one_does_not_forget(sandbox, caplog):
    store = Store()
    operator = Starting()(deferrable=False)
    end_in_wait(sandbox, operator, context(store), change(sandbox, "long", status="paused"))
    assert MAY_GO_ON in caplog.text
    assert (store["voicegenie_task"]["start"]["phase"], store["voicegenie_task"]["start"]["must_pause_on_kill"]) == (
        "closed",
        True,
    )
    # The next day it goes on by itself; the task, which was cleared, does not start it, and is ended again.
    sandbox.sandbox.store.change("long", status="running")
    again = Starting(**TOMORROW)(deferrable=False)
    end_in_wait(sandbox, again, context(store, try_number=2, max_tries=3), lambda: None)
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "paused")
    assert not store["voicegenie_task"]["start"]["must_pause_on_kill"]
    # It is paused now, and somebody else's from now on.
    sandbox.sandbox.store.change("long", status="running")
    end_in_wait(
        sandbox, Starting(**TOMORROW)(deferrable=False), context(store, try_number=3, max_tries=4), lambda: None
    )
    assert sandbox.status("long") == "running"


def test_a_kill_before_the_next_day_is_looked_at_does_not_forget_either(sandbox):
    store = Store()
    end_in_wait(sandbox, Starting()(deferrable=False), context(store), change(sandbox, "long", status="paused"))
    sandbox.sandbox.store.change("long", status="running")
    operator = Starting(campaign_id="followed")(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="Campaign 'long'"):
        operator.execute(context(store, try_number=2, max_tries=3, state="failed"))
    assert (sandbox.status("long"), sandbox.status("followed")) == ("paused", "running")


def test_a_kill_of_a_try_that_only_skips_does_nothing(sandbox):
    """By default, the task is skipped the next day, and the campaign that started itself goes on."""
    store = Store()
    end_in_wait(sandbox, Starting()(deferrable=False), context(store), change(sandbox, "long", status="paused"))
    sandbox.sandbox.store.change("long", status="running")
    with pytest.raises(AirflowSkipException):
        Starting()(deferrable=False).execute(context(store, try_number=2, max_tries=3))
    assert sandbox.status("long") == "running"


def test_an_execution_timeout_at_night_is_remembered(sandbox, caplog):
    store = Store()
    make = Starting(execution_timeout=timedelta(seconds=1))
    time_out_at_night(sandbox, make, store)
    assert MAY_GO_ON in caplog.text
    assert (store["voicegenie_task"]["start"]["phase"], store["voicegenie_task"]["start"]["must_pause_on_kill"]) == (
        "timed_out",
        True,
    )
    sandbox.sandbox.store.change("long", status="running")
    operator = make(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context(store, try_number=2, state="failed"))
    assert sandbox.status("long") == "paused"


def time_out_at_night(sandbox, make, store):
    """Let the execution_timeout of a task that waits in a worker come once the campaign has paused itself."""

    def sleep(seconds):
        sandbox.sandbox.store.change("long", status="paused")
        raise AirflowTaskTimeout

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wait.time, "sleep", sleep)
        with pytest.raises(AirflowTaskTimeout):
            make(deferrable=False).execute(context(store))


def test_a_task_that_was_ended_while_deferred_does_not_forget(sandbox):
    """The triggerer pauses then, which may be in vain; it cannot keep anything of the task."""
    store = Store()
    with pytest.raises(TaskDeferred):
        Starting()(deferrable=True).execute(context(store))
    # Ended and cleared; the campaign, which was paused already, has gone on since.
    again = Starting(**TOMORROW)(deferrable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "pause_after_clear", 0.0)
        with pytest.raises(TaskDeferred) as deferral:
            again.execute(context(store, try_number=2, max_tries=3))
    assert sandbox.start_count("long") == 1
    assert deferral.value.trigger.pause_on_kill


def test_that_costs_no_further_request_to_airflow(sandbox):
    class Counting(Store):
        sets = 0

        def set(self, key, value):
            self.sets += 1
            super().set(key, value)

    store = Counting()
    with pytest.raises(TaskDeferred):
        Starting()(deferrable=True).execute(context(store))
    assert (store.sets, store["voicegenie_task"]["start"]["phase"]) == (2, "started")


def test_a_task_that_went_on_after_its_deferral_owes_nothing(sandbox):
    store = Store()
    sandbox.speed = 10_000
    assert deferred(Starting(), context(store))["status"] == "completed"
    assert not store["voicegenie_task"]["start"]["must_pause_on_kill"]


@both_ways
@pytest.mark.parametrize("hours_ago", [0, 2])
def test_without_a_store_a_start_outside_the_calling_hours_is_not_ours(sandbox, way, hours_ago):
    """It began to run by itself, since the DAG run began and before a retry."""
    opened = now() - timedelta(hours=1)
    hours = CallingHours(opened.time(), (now() + timedelta(hours=1)).time(), "UTC", over_midnight=True)
    sandbox.sandbox.store.change("long", status="running", started_at=now() - timedelta(hours=hours_ago))
    run = context(try_number=2)
    run["dag_run"].start_date = now() - timedelta(hours=3)
    operator = Starting(calling_hours=hours)(deferrable=False)
    if hours_ago:
        with pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"):
            operator.execute(run)
        return
    end_in_wait(sandbox, operator, run, lambda: None)
    assert sandbox.status("long") == "paused"


def test_without_a_store_a_killed_try_leaves_alone_what_started_itself(sandbox):
    hours = CallingHours(
        (now() + timedelta(hours=1)).time(), (now() + timedelta(hours=2)).time(), "UTC", over_midnight=True
    )
    sandbox.sandbox.store.change("long", status="running", started_at=now())
    operator = Starting(calling_hours=hours)(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context(try_number=2, state="failed"))
    assert sandbox.status("long") == "running"


@both_ways
@pytest.mark.parametrize("word", ["pending", "Pending", "not-yet-started", "Not Yet Started"])
def test_a_campaign_that_was_not_started_yet_may_be(sandbox, way, word):
    make = Starting(campaign_id=sandbox.add_campaign(status=word).id, wait_for_completion=False)
    body = '{"success": false, "message": "Configuration is missing", "error": "INVALID_CAMPAIGN_STATE"}'
    sandbox.inject("status", "start", status=422, body=body)
    # The service decides.
    with pytest.raises(AirflowFailException, match="INVALID_CAMPAIGN_STATE"):
        way(make, context())
    assert way(make, context())["started_by_task"]


def test_without_a_store_a_pending_campaign_may_have_been_started(sandbox):
    """An accepted start may leave it pending for a while."""
    campaign_id = sandbox.add_campaign(status="pending").id
    run = context(try_number=2)
    with pytest.raises(AirflowFailException, match="START_UNCONFIRMED"):
        Starting(campaign_id=campaign_id)(deferrable=False).execute(run)
    assert sandbox.request_count("start") == 0


def test_a_lost_start_of_a_pending_campaign_is_never_sent_again(sandbox):
    campaign_id = sandbox.add_campaign(status="pending").id
    sandbox.inject("close", "start")
    store = Store()
    with pytest.raises(AirflowFailException, match="START_UNCONFIRMED"):
        Starting(campaign_id=campaign_id)(deferrable=False).execute(context(store))
    with pytest.raises(AirflowFailException, match="START_UNCONFIRMED"):
        Starting(campaign_id=campaign_id)(deferrable=False).execute(context(store, try_number=2))
    assert sandbox.request_count("start") == 1


def test_a_kill_while_an_accepted_start_is_pending_is_not_forgotten(sandbox, caplog, monkeypatch):
    store = Store()
    monkeypatch.setattr(timing, "kill_pause_delays", (0.0,))
    end_in_wait(sandbox, Starting()(deferrable=False), context(store), change(sandbox, "long", status="pending"))
    assert "if the start takes effect late, pause it" in caplog.text
    assert store["voicegenie_task"]["start"]["must_pause_on_kill"]


def test_a_start_that_was_taken_over_and_deferred_again_is_paused_before_it_is_started_anew(sandbox):
    store = Store()
    first = Starting(completion_timeout=0.3, outcomes={"COMPLETION_TIMEOUT": "retry"})
    with pytest.raises(VoiceGenieRetryException):
        deferred(first, context(store))
    assert not store["voicegenie_task"]["start"]["must_pause_on_kill"]
    with pytest.raises(TaskDeferred):
        Starting()(deferrable=True).execute(context(store, try_number=2))
    assert store["voicegenie_task"]["start"]["must_pause_on_kill"]
    # Cleared while it was deferred; the triggerer takes a moment to pause it.
    with (
        meanwhile(lambda: sandbox.request_count("get", "long") > 5, change(sandbox, "long", status="paused")),
        pytest.raises(TaskDeferred),
    ):
        Starting()(deferrable=True).execute(context(store, try_number=3, max_tries=4))
    assert sandbox.start_count("long") == 2


def test_what_is_owed_to_one_campaign_is_not_taken_from_another(sandbox):
    store = Store()
    end_in_wait(sandbox, Starting()(deferrable=False), context(store), change(sandbox, "long", status="paused"))
    other = sandbox.add_campaign(total_count=10_000).id
    sandbox.inject("status", "start", status=503, campaign_id=other, body="{}")
    with pytest.raises(VoiceGenieRetryException):
        Starting(campaign_id=other)(deferrable=False).execute(context(store, try_number=2, max_tries=3))
    assert not store["voicegenie_task"]["start"]["must_pause_on_kill"]


def test_a_check_that_is_ended_pauses_nothing(sandbox):
    sandbox.sandbox.store.change("long", status="running", started_at=now())
    operator = Starting(check_only=True)(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context(try_number=2, state="failed"))
    assert sandbox.status("long") == "running"


def fails(day):
    raise KeyError("no calendar")


def test_dates_that_cannot_be_asked_for_do_not_prevent_a_pause(sandbox, caplog):
    sandbox.sandbox.store.change("long", status="running", started_at=now())
    hours = CallingHours("00:00", "23:59:59.999999", "UTC", except_dates=fails)
    operator = Starting(calling_hours=hours)(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context(try_number=2, state="failed"))
    assert sandbox.status("long") == "paused"
    assert "fails(" in caplog.text


def test_a_retry_after_a_pause_that_failed_says_so(sandbox):
    store = Store()
    make = Starting(execution_timeout=timedelta(seconds=1))
    time_out_at_night(sandbox, make, store)
    with pytest.raises(AirflowFailException, match="could not pause it when its execution_timeout was over"):
        make(deferrable=False).execute(context(store, try_number=2))


@pytest.mark.parametrize("status", ["paused", "completed", "stopped", "failed"])
def test_without_a_store_what_runs_no_more_is_never_taken_for_self_started(sandbox, status):
    """A start outside the calling hours, which may have been others then, is not made a second time."""
    hours = CallingHours(
        (now() - timedelta(hours=1)).time(), (now() + timedelta(hours=1)).time(), "UTC", over_midnight=True
    )
    sandbox.sandbox.store.change("long", status=status, started_at=now() - timedelta(hours=2))
    run = context(try_number=2)
    run["dag_run"].start_date = now() - timedelta(hours=3)
    result = Starting(calling_hours=hours, wait_for_completion=False)(deferrable=False).execute(run)
    assert (result["status"], result["started_by_task"]) == (status, True)
    assert sandbox.request_count("start") == 0


# What is owed to a campaign whose pause may have been in vain.


REFUSED = '{"success": false, "message": "No", "error": "%s"}'


def owing(sandbox):
    """Return what Airflow keeps of a task that was ended at night; the campaign is paused, and may go on by itself."""
    store = Store()
    end_in_wait(sandbox, Starting()(deferrable=False), context(store), change(sandbox, "long", status="paused"))
    assert store["voicegenie_task"]["start"]["must_pause_on_kill"]
    return store


def cut_off(hook, campaign_id, **callbacks):
    """Before any of the start is sent."""
    raise AirflowTaskTimeout("Timeout")


@pytest.mark.parametrize("trouble", ["refused", "cut off", "hours"])
def test_what_is_owed_is_still_owed_after_a_new_start_in_vain(sandbox, trouble, monkeypatch):
    store = owing(sandbox)
    run = context(store, try_number=2, max_tries=3)
    with monkeypatch.context() as patch:
        if trouble == "refused":
            sandbox.inject("status", "start", status=422, body=REFUSED % "INVALID_CAMPAIGN_STATE")
        elif trouble == "cut off":
            patch.setattr(VoiceGenieHook, "start_campaign", cut_off)
        else:
            answers = [None, Finding(Condition.OUTSIDE_CALLING_HOURS, "closed by now")]
            patch.setattr(send, "check_calling_hours", lambda *_: answers.pop(0))
        with pytest.raises((AirflowFailException, AirflowTaskTimeout)):
            Starting(pause_on_kill=trouble != "cut off")(deferrable=False).execute(run)
    assert store["voicegenie_task"]["start"]["must_pause_on_kill"]
    # It goes on by itself, and a user ends the next try before that has started anything.
    sandbox.sandbox.store.change("long", status="running")
    operator = Starting()(deferrable=False)
    operator.on_kill()
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(context(store, try_number=3, max_tries=4, state="failed"))
    assert sandbox.status("long") == "paused"


@both_ways
def test_what_is_owed_is_paused_by_a_task_that_follows_the_start_of_others(sandbox, way):
    """The service refuses the task's own start, as it has just begun to run by itself."""
    store = owing(sandbox)
    sandbox.inject("status", "start", status=400, body=REFUSED % "CAMPAIGN_ALREADY_RUNNING")
    run = context(store, try_number=2, max_tries=3)
    operator = Starting(**TOMORROW)(deferrable=way is deferred)

    def start_campaign(hook, campaign_id, *, original=VoiceGenieHook.start_campaign, **callbacks):
        sandbox.sandbox.store.change(campaign_id, status="running")
        return original(hook, campaign_id, **callbacks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceGenieHook, "start_campaign", start_campaign)
        if way is deferred:
            with pytest.raises(TaskDeferred) as deferral:
                operator.execute(run)
            assert deferral.value.trigger.pause_on_kill
            return
        end_in_wait(sandbox, operator, run, lambda: None)
    assert sandbox.status("long") == "paused"


def test_an_execution_timeout_of_a_resumed_task_at_night_is_remembered(sandbox):
    """What was confirmed before the deferral is so afterwards: one pause tells that it is paused already."""
    store = Store()
    make = Starting(execution_timeout=timedelta(seconds=60))
    run = context(store)
    with pytest.raises(TaskDeferred) as deferral:
        make(deferrable=True).execute(run)
    sandbox.sandbox.store.change("long", status="paused")
    deferral.value.trigger.execution_deadline = 0.0
    event = event_of(deferral.value.trigger)
    with pytest.raises(AirflowTaskTimeout):
        make(deferrable=True).resume_execution("execute_complete", {"event": event}, run)
    record = store["voicegenie_task"]["start"]
    assert (record["phase"], record["must_pause_on_kill"], sandbox.request_count("pause")) == ("timed_out", True, 1)
    with pytest.raises(AirflowFailException, match="could not pause it"):
        make(deferrable=True).execute(context(store, try_number=2))
    assert sandbox.start_count("long") == 1
