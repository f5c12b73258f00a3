# SPDX-License-Identifier: Apache-2.0
"""A start that waits for its calling hours: in the worker or deferred, and what ends that wait."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)
from airflow.providers.common.compat.standard.triggers import TimeDeltaTrigger
from helpers.clock import now
from helpers.tasks import Starting, Store, both_ways, change, context, event_of, in_worker, meanwhile

from airflow_provider_voicegenie.operators.campaign import CallingHours
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.start import guards

WAIT = {"OUTSIDE_CALLING_HOURS": "wait"}


def opening_in(seconds, **arguments):
    """Return hours that open so soon, and are open for an hour."""
    start, end = (now() + timedelta(seconds=seconds + more) for more in (0, 3600))
    return CallingHours(start.time(), end.time(), "UTC", **arguments, over_midnight=True)


def waiting(hours, **arguments):
    return Starting(**{"calling_hours": hours, "wait_for_completion": False, "outcomes": WAIT, **arguments})


def deferred(make, run):
    """Wait in the triggerer; the operator is another one afterwards, with templates that give another campaign."""
    operator = make(deferrable=True)
    with pytest.MonkeyPatch.context() as patch:
        # Airflow's trigger counts from now on.
        patch.setattr(sys.modules[TimeDeltaTrigger.__module__].timezone, "utcnow", now)
        with pytest.raises(TaskDeferred) as caught:
            operator.execute(run)
    deferral = caught.value
    assert event_of(deferral.trigger) is None
    again = make(deferrable=True)
    again.campaign_id = "another"
    # `dag.test()` drops what else was handed to the method.
    assert not deferral.kwargs
    run["ti"].next_method = deferral.method_name
    return again.resume_execution(deferral.method_name, {"event": "the moment"}, run)


WAYS = pytest.mark.parametrize("way", [in_worker, deferred], ids=["worker", "deferred"])


@WAYS
@pytest.mark.parametrize("is_list", [False, True])
def test_it_starts_once_they_open(sandbox, clock, way, is_list, said):
    hours = opening_in(5)
    closed = CallingHours(hours.start, hours.end, "UTC", except_dates=[now().date()], over_midnight=True)
    began = clock.time()
    result = way(waiting([closed, hours] if is_list else hours), context(Store()))
    assert clock.time() - began == pytest.approx(5, abs=0.01)
    assert (result["campaign_id"], result["started_by_task"]) == ("long", True)
    assert sandbox.start_count("long") == 1
    # Read anew, with all guards.
    assert sandbox.request_count("get", "long") == 2
    (line,) = [line for line in said() if "OUTSIDE_CALLING_HOURS" in line]
    assert f"{hours.start.isoformat()} to" in line
    assert "they open on" in line
    assert "[OUTSIDE_CALLING_HOURS: the task waits]" in line


@WAYS
def test_the_campaign_may_have_been_started_meanwhile(sandbox, way):
    running = change(sandbox, "long", status="running")
    with (
        meanwhile(lambda: sandbox.request_count("get", "long") == 1, running),
        pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"),
    ):
        way(waiting(opening_in(5)), context())
    assert sandbox.request_count("start") == 0


@both_ways
def test_a_run_that_would_be_too_late_does_not_wait(sandbox, way):
    run = context()
    run["dag_run"].run_type = "scheduled"
    with pytest.raises(
        AirflowSkipException, match=r"outside the calling hours .*; when they open, this run was due at"
    ):
        way(waiting(opening_in(1800), max_lateness=600), run)
    assert way(waiting(opening_in(1800), max_lateness=600, check_only=True), context())["check_only"]


@both_ways
def test_a_run_that_becomes_too_late_is_not_started(sandbox, monkeypatch, way):
    """As when no worker is free once they open."""
    run = context()
    run["dag_run"].run_type = "scheduled"
    original, checks = guards.check_run, []

    def check_run(task, context, now):
        checks.append(now)
        return original(task, context, now + timedelta(hours=1) if len(checks) == 3 else now)

    monkeypatch.setattr("airflow_provider_voicegenie.start.record.check_run", check_run)
    way = in_worker if way is in_worker else deferred
    with pytest.raises(AirflowSkipException, match="RUN_TOO_LATE"):
        way(waiting(opening_in(5), max_lateness=600), run)
    assert sandbox.request_count("start") == 0


@both_ways
def test_hours_that_do_not_open_are_an_error_when_the_wait_begins(sandbox, way):
    today = now().date()
    dates = [today + timedelta(days=number) for number in range(-1, 20)]
    with pytest.raises(
        AirflowFailException,
        match=r"they do not open within 14 days. Change calling_hours .* .OUTSIDE_CALLING_HOURS: the task",
    ):
        way(waiting(opening_in(3600, except_dates=dates)), context())


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_kill_ends_it_and_pauses_nothing(sandbox, state):
    run = context(Store())
    operator = waiting(opening_in(1800))(deferrable=False)

    def sleep(seconds):
        assert 1790 < seconds < 1801
        run["ti"].state = state
        operator.on_kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow_provider_voicegenie.start.run.time.sleep", sleep)
        with pytest.raises(VoiceGenieRetryException, match="ended from outside before it started anything"):
            operator.execute(run)
    assert (sandbox.request_count("start"), sandbox.request_count("pause")) == (0, 0)


def test_a_task_that_a_user_has_ended_is_not_deferred(sandbox):
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        waiting(opening_in(1800))(deferrable=True).execute(context(state="failed"))


@WAYS
def test_the_execution_timeout_holds_meanwhile(sandbox, clock, way):
    began = clock.time()
    make = waiting(opening_in(1800), execution_timeout=timedelta(seconds=1))
    with pytest.raises(AirflowTaskTimeout, match="execution_timeout was over before the campaign could be started"):
        way(make, context())
    assert clock.time() - began == pytest.approx(1, abs=0.01)
    assert sandbox.request_count("start") == 0


@WAYS
def test_it_waits_for_completion_afterwards(sandbox, way):
    sandbox.speed = 100_000
    make = waiting(opening_in(5), wait_for_completion=True)
    if way is deferred:
        # Deferred for the second time.
        with pytest.raises(TaskDeferred) as caught:
            way(make, context())
        assert (caught.value.method_name, caught.value.trigger.campaign_id) == ("execute_complete", "long")
    else:
        assert way(make, context())["status"] == "completed"


def test_hours_that_close_while_airflow_takes_its_time_are_waited_for(sandbox, monkeypatch):
    run = context(Store())
    hours = opening_in(5)
    original, checks = guards.check_calling_hours, []

    def check(given, now):
        checks.append(now)
        return None if len(checks) == 1 else original(given, now)

    monkeypatch.setattr("airflow_provider_voicegenie.start.send.check_calling_hours", check)
    assert in_worker(waiting(hours), run)["started_by_task"]
    assert sandbox.start_count("long") == 1


@pytest.mark.parametrize("hours", ["09:00-17:00", [], 5, [CallingHours("09:00", "17:00", "UTC"), None], CallingHours])
def test_other_hours_are_refused_when_the_dag_is_parsed(hours):
    with pytest.raises(ValueError, match=r"calling_hours must be CallingHours.*or a list of them"):
        waiting(hours)(deferrable=False)


# What a start is allowed, and what it would do.


@both_ways
@pytest.mark.parametrize(
    ("total_count", "max_contacts", "words"),
    [
        (20, 20, None),
        (21, 20, "the campaign has 21 contacts, and max_contacts is 20"),
        (1250, 1000, "the campaign has 1,250 contacts, and max_contacts is 1,000, so it was not started"),
        (1, 0, "the campaign has 1 contacts, and max_contacts is 0"),
    ],
)
def test_the_number_of_people_is_bounded(sandbox, way, total_count, max_contacts, words):
    campaign_id = sandbox.add_campaign(total_count=total_count).id
    make = Starting(campaign_id=campaign_id, max_contacts=max_contacts, wait_for_completion=False)
    if words is None:
        assert way(make, context())["started_by_task"]
        return
    with pytest.raises(AirflowFailException, match=f"{words}.*TOO_MANY_CONTACTS: the task fails"):
        way(make, context())
    assert sandbox.request_count("start") == 0
    make.arguments["outcomes"] = {"TOO_MANY_CONTACTS": "skip"}
    with pytest.raises(AirflowSkipException):
        way(make, context())


def test_an_unknown_number_of_people_is_too_many(sandbox, monkeypatch):
    original = guards.check_campaign
    monkeypatch.setattr(
        "airflow_provider_voicegenie.start.send.check_campaign",
        lambda task, campaign: original(task, campaign.__class__("c", campaign.status, "paused")),
    )
    with pytest.raises(AirflowFailException, match="an unknown number of contacts, and max_contacts is 5"):
        Starting(max_contacts=5)(deferrable=False).execute(context())


@pytest.mark.parametrize("max_contacts", [-1, 1.5, "ten", "-1", "", True])
def test_a_wrong_bound_is_refused_when_the_dag_is_parsed(max_contacts):
    with pytest.raises(ValueError, match="max_contacts must be a whole number of 0 or more"):
        Starting(max_contacts=max_contacts)(deferrable=False)


@both_ways
@pytest.mark.parametrize("check_only", [True, "True", "true", "yes", "1"])
def test_a_check_sends_nothing(sandbox, way, said, check_only):
    campaign_id = sandbox.add_campaign(total_count=1250).id
    hours = CallingHours("00:00", "23:59:59.999999", "UTC")
    store = Store()
    make = Starting(campaign_id=campaign_id, check_only=check_only, calling_hours=hours, max_contacts=2000)
    result = way(make, context(store))
    assert result == {
        "campaign_id": campaign_id,
        "status": "scheduled",
        "started_at": None,
        "started_by_task": False,
        "check_only": True,
        "completed_at": None,
        "statistics": None,
        "contacts": 1250,
        "name": "campaign",
        "starts_at": None,
        "closes_at": None,
        "quota_left": None,
    }
    assert [request.operation for request in sandbox.sandbox.requests] == ["get"]
    assert not store
    assert said()[-1] == (
        f"Campaign {campaign_id!r}: would start it: 1,250 contacts, script set, within the calling hours. Nothing was "
        "sent, as check_only is set."
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"campaign_id": "running"}, AirflowSkipException, "CAMPAIGN_ALREADY_RUNNING"),
        ({"campaign_id": "completed"}, AirflowFailException, "CAMPAIGN_COMPLETED"),
        ({"campaign_id": "nobody"}, AirflowFailException, "NOT_FOUND"),
        (
            {"campaign_id": "no-script"},
            AirflowFailException,
            "the service would not start it: no script .INVALID_CAMPAIGN",
        ),
        (
            {"campaign_id": "no-contacts"},
            AirflowFailException,
            "would not start it: no contacts .INVALID_CAMPAIGN_STATE",
        ),
        (
            {"campaign_id": "draft"},
            AirflowFailException,
            "status 'draft' .*; no script; no contacts .INVALID_CAMPAIGN_STATE",
        ),
        ({"max_contacts": 5}, AirflowFailException, "TOO_MANY_CONTACTS"),
        ({}, None, ""),
    ],
)
def test_a_check_goes_through_all_guards(sandbox, arguments, error, words, said):
    if error is None:
        arguments = {"calling_hours": opening_in(1800)}
        with pytest.raises(AirflowFailException, match="OUTSIDE_CALLING_HOURS"):
            Starting(**arguments, check_only=True)(deferrable=True).execute(context())
        # It waits for nothing.
        Starting(**arguments, check_only=True, outcomes=WAIT)(deferrable=True).execute(context())
        assert "would wait until" in said()[-1]
    else:
        with pytest.raises(error, match=words):
            Starting(**arguments, check_only=True)(deferrable=True).execute(context())
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize("check_only", [False, "False", "no", "0"])
def test_what_is_no_check_starts(sandbox, check_only):
    result = Starting(check_only=check_only, wait_for_completion=False)(deferrable=False).execute(context())
    assert result["started_by_task"]
    assert "check_only" not in result


@pytest.mark.parametrize("check_only", ["maybe", 5, "None", "", None, [True]])
def test_a_check_that_is_neither_is_refused(sandbox, check_only):
    make = Starting(check_only=check_only)
    with pytest.raises(ValueError, match="check_only must be True or False, or a template that gives one of them"):
        make(deferrable=False)
    operator = Starting(check_only="{{ params.check }}")(deferrable=False)
    operator.check_only = check_only
    with pytest.raises(ValueError, match="check_only must be True or False"):
        operator.execute(context())
    assert len(sandbox.sandbox.requests) == 0


def test_without_what_it_waited_with_it_starts_nothing(sandbox):
    operator = waiting(opening_in(5))(deferrable=True)
    with pytest.raises(AirflowFailException, match=r"Airflow has lost .* starts nothing"):
        operator.resume_execution("execute_again", {"event": "the moment"}, context())
    assert len(sandbox.sandbox.requests) == 0


def test_a_check_takes_nothing_over(sandbox):
    store = Store()
    Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    again = Starting(check_only=True, outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"})(deferrable=False)
    result = again.execute(context(store, try_number=2))
    assert (result["started_by_task"], result["check_only"], result["status"]) == (False, True, "running")


# The plan, and the approved number of people.


def checked(**arguments):
    return Starting(**arguments, check_only=True, wait_for_completion=False)(deferrable=False).execute(context())


def test_a_plan_says_when_it_would_start_and_until_when(sandbox):
    hours = opening_in(1800)
    plan = checked(calling_hours=hours, outcomes=WAIT)
    # It may be tomorrow.
    opens = datetime.combine((now() + timedelta(seconds=1800)).date(), hours.start, UTC)
    assert datetime.fromisoformat(plan["starts_at"]) == opens
    assert datetime.fromisoformat(plan["closes_at"]) == opens + timedelta(hours=1)
    open_now = opening_in(-1800)
    plan = checked(calling_hours=open_now)
    assert plan["starts_at"] is None
    assert timedelta(minutes=29) < datetime.fromisoformat(plan["closes_at"]) - now() <= timedelta(minutes=30)


def test_a_plan_reads_the_quota_only_if_it_is_asked_to(sandbox):
    plan = checked()
    assert (plan["quota_left"], sandbox.request_count("quota")) == (None, 0)
    plan = checked(read_quota=True)
    assert plan["quota_left"] == sandbox.sandbox.quota.to_json()["quota"]["calls"]["remaining"]
    assert sandbox.request_count("quota") == 1
    with pytest.raises(ValueError, match="read_quota: only a task that checks returns the quota"):
        Starting(read_quota=True)(deferrable=False)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "status", "status": 401}, AirflowFailException),
        ({"kind": "status", "status": 503}, VoiceGenieRetryException),
        ({"kind": "not_json"}, VoiceGenieRetryException),
        ({"kind": "close"}, VoiceGenieRetryException),
    ],
)
def test_a_quota_that_cannot_be_read_is_no_plan(sandbox, fault, error):
    sandbox.inject(fault.pop("kind"), "quota", **fault)
    with pytest.raises(error):
        checked(read_quota=True)
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize(("approved", "is_started"), [("900", True), (" 900 ", True), (900, True), ("899", False)])
def test_the_limit_may_come_from_a_template(sandbox, approved, is_started):
    campaign_id = sandbox.add_campaign(total_count=900).id
    operator = Starting(campaign_id=campaign_id, max_contacts="{{ params.n }}", wait_for_completion=False)(
        deferrable=False
    )
    operator.max_contacts = approved
    if is_started:
        assert operator.execute(context())["started_by_task"]
        return
    with pytest.raises(AirflowFailException, match=r"900 contacts, and max_contacts is 899.*TOO_MANY_CONTACTS"):
        operator.execute(context())


@pytest.mark.parametrize("given", [None, "None", "", "nine", "-1", 1.5, True, [900]])
def test_a_limit_that_renders_to_no_number_starts_nothing(sandbox, given):
    operator = Starting(max_contacts="{{ params.n }}", wait_for_completion=False)(deferrable=False)
    operator.max_contacts = given
    with pytest.raises(AirflowFailException, match=r"max_contacts must be a whole number .* Nothing was started"):
        operator.execute(context())
    assert sandbox.request_count("start") == 0


def test_a_limit_that_is_set_later_counts(sandbox):
    """As a cluster policy may do it."""
    operator = Starting(wait_for_completion=False)(deferrable=False)
    operator.max_contacts = 5
    with pytest.raises(AirflowFailException, match="TOO_MANY_CONTACTS"):
        operator.execute(context())


def test_a_limit_of_none_is_refused_wherever_it_comes_from():
    with pytest.raises(ValueError, match="max_contacts must be a whole number of 0 or more; got None"):
        Starting(max_contacts=None)(deferrable=False)


def test_a_plan_waits_until_its_quota_can_be_read(sandbox, clock, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(max_attempts=3))
    sandbox.inject("status", "quota", status=429, headers={"Retry-After": "7"})
    plan = Starting(check_only=True, read_quota=True, wait_for_completion=False)(deferrable=False).execute(context())
    assert plan["quota_left"] == 10_000
    assert sandbox.request_count("quota") == 2


def test_a_limit_that_renders_to_nothing_ends_no_wait(sandbox):
    """What was started is followed, whatever the template gives after the deferral."""
    make = Starting(max_contacts=20_000)
    run = context(Store())
    deferral = deferred_start(make, run)
    again = make(deferrable=True)
    again.max_contacts, again.check_only = None, "maybe"
    sandbox.sandbox.store.change("long", status="completed")
    event = event_of(deferral.trigger)
    run["ti"].next_method = deferral.method_name
    assert again.resume_execution(deferral.method_name, {"event": event}, run)["status"] == "completed"


def deferred_start(make, run):
    with pytest.raises(TaskDeferred) as caught:
        make(deferrable=True).execute(run)
    return caught.value
