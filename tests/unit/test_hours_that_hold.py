# SPDX-License-Identifier: Apache-2.0
"""Hours and limits that hold while a campaign runs: the pause at closing, after enough calls, and if it goes wrong."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from helpers.clock import now
from helpers.tasks import (
    ENDS,
    Starting,
    Store,
    both_ways,
    change,
    complete,
    context,
    deferred,
    in_wait,
    is_waiting,
    meanwhile,
)

from airflow_provider_voicegenie.operators.campaign import CallingHours
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException

SUCCEED = {"CALLING_HOURS_OVER": "succeed"}


@pytest.fixture
def paused_at(sandbox, clock, monkeypatch):
    """Return when pauses came to the service, by the clock."""
    moments = []
    store = sandbox.sandbox.store
    original = store.pause
    monkeypatch.setattr(store, "pause", lambda *arguments: (moments.append(clock.time()), original(*arguments))[1])
    return moments


def closing_in(seconds, opened=1800):
    start, end = now() - timedelta(seconds=opened), now() + timedelta(seconds=seconds)
    return CallingHours(start.time(), end.time(), "UTC", over_midnight=True)


def until(seconds, **arguments):
    return Starting(**{"calling_hours": closing_in(seconds), "poll_interval": 60, **arguments})


# At closing.


@both_ways
@pytest.mark.parametrize("at_closing", [None, "pause"])
def test_a_campaign_is_paused_when_its_hours_close(sandbox, clock, way, paused_at, at_closing, said):
    closes = clock.time() + 5
    with pytest.raises(AirflowFailException) as caught:
        way(until(5, at_closing=at_closing), context(Store()))
    assert paused_at == [pytest.approx(closes, abs=0.1)]
    assert str(caught.value) == (
        "Campaign 'long': its calling hours are over, so it was paused; 10,000 of 10,000 contacts were left at "
        "the last look [CALLING_HOURS_OVER: the task fails, without retry]."
    )
    assert sandbox.status("long") == "paused"
    assert (sandbox.start_count("long"), sandbox.request_count("pause", "long")) == (1, 1)


@both_ways
def test_a_success_says_what_happened(sandbox, way, paused_at):
    result = way(until(5, outcomes=SUCCEED), context(Store()))
    (pause,) = result.pop("pauses")
    assert (result["status"], result["started_by_task"], result["completed_at"]) == ("paused", True, None)
    assert (pause["why"], pause["was_paused_already"]) == ("CALLING_HOURS_OVER", False)
    assert datetime.fromisoformat(pause["at"]).timestamp() == pytest.approx(paused_at[0], abs=0.1)


@both_ways
@pytest.mark.parametrize("outcome", ["skip", "retry"])
def test_the_outcome_is_the_authors(sandbox, way, outcome):
    with pytest.raises(ENDS[outcome], match="CALLING_HOURS_OVER"):
        way(until(5, outcomes={"CALLING_HOURS_OVER": outcome}), context(Store()))
    assert sandbox.status("long") == "paused"


@both_ways
def test_it_may_be_followed_on(sandbox, way, said):
    """Its own pause is no CAMPAIGN_PAUSED; when a person starts it again, it is followed until it is completed."""
    outcomes = {"CALLING_HOURS_OVER": "wait", "CAMPAIGN_PAUSED": "fail"}
    steps = (lambda: sandbox.status("long") == "paused", change(sandbox, "long", status="running"))
    with meanwhile(*steps, lambda: sandbox.status("long") == "running", complete(sandbox, "long")):
        result = way(until(5, outcomes=outcomes, poll_interval=1), context(Store()))
    assert (result["status"], len(result["pauses"])) == ("completed", 1)
    assert sum("CALLING_HOURS_OVER: the wait goes on" in line for line in said()) == 1


@both_ways
def test_windows_that_adjoin_are_one(sandbox, clock, way, paused_at):
    first = closing_in(5)
    second = CallingHours(first.end, (now() + timedelta(seconds=9)).time(), "UTC", over_midnight=True)
    closes = clock.time() + 9
    way(Starting(calling_hours=[first, second], poll_interval=60, outcomes=SUCCEED), context(Store()))
    assert paused_at == [pytest.approx(closes, abs=0.1)]


@both_ways
@pytest.mark.parametrize("operation", ["get", "list", "*"])
def test_a_service_that_cannot_be_read_is_paused_in_time(sandbox, clock, way, paused_at, operation):
    closes = clock.time() + 5
    make = until(5, outcomes=SUCCEED, poll_interval=1)

    def fail():
        for name in ("get", "list", "stats") if operation == "*" else (operation,):
            sandbox.inject("status", name, status=503, times=None)

    with meanwhile(is_waiting(sandbox, "long"), fail):
        assert way(make, context(Store()))["status"] == "paused"
    assert paused_at[0] == pytest.approx(closes, abs=0.1)


@both_ways
def test_a_read_that_hangs_does_not_hold_up_the_pause(voicegenie_sandbox, monkeypatch, way):
    """In real time: a read without a response would last for longer than the test may."""
    sandbox = voicegenie_sandbox
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(timeout=600))
    sandbox.add_campaign(id="long", total_count=10_000)
    with meanwhile(is_waiting(sandbox, "long"), lambda: sandbox.inject("hold", "get", times=None)):
        assert way(until(3, outcomes=SUCCEED, poll_interval=0.2), context(Store()))["status"] == "paused"


@both_ways
def test_a_pause_that_fails_is_tried_again(sandbox, clock, way, paused_at, said):
    sandbox.inject("status", "pause", status=503, times=3)
    sandbox.inject("status", "pause", status=429, headers={"Retry-After": "7"}, times=1)
    assert way(until(5, outcomes=SUCCEED), context(Store()))["status"] == "paused"
    assert sandbox.request_count("pause", "long") == 5
    lines = [line for line in said() if "IT MAY GO ON CALLING; " in line]
    assert len(lines) == 4
    assert "its calling hours are over, and it could not be paused" in lines[0]


@both_ways
@pytest.mark.parametrize("after_acting", [True, False])
def test_a_pause_without_a_response_is_looked_after(sandbox, way, after_acting):
    sandbox.inject("close", "pause", after_acting=after_acting)
    result = way(until(5, outcomes=SUCCEED), context(Store()))
    assert result["pauses"][0]["was_paused_already"] is False
    assert sandbox.status("long") == "paused"
    assert sandbox.request_count("pause", "long") == (1 if after_acting else 2)


@both_ways
def test_a_pause_that_is_refused_for_good_fails_and_says_that_it_may_go_on(sandbox, way):
    sandbox.inject("status", "pause", status=403, times=None)
    with pytest.raises(
        AirflowFailException, match=r"could not be paused: .*IT MAY GO ON CALLING: pause it \[FORBIDDEN"
    ):
        way(until(5, outcomes=SUCCEED), context(Store()))


@pytest.fixture
def just_before_the_pause(sandbox, monkeypatch):
    """Return what has a campaign changed between the last look at it and the first pause."""
    store = sandbox.sandbox.store
    original = store.pause

    def change_then(**changes):
        def pause(campaign_id):
            monkeypatch.setattr(store, "pause", original)
            store.change(campaign_id, **changes)
            return original(campaign_id)

        monkeypatch.setattr(store, "pause", pause)

    return change_then


@both_ways
def test_a_campaign_that_ended_meanwhile_is_no_closing(sandbox, way, just_before_the_pause):
    just_before_the_pause(status="completed", ended_at=now())
    result = way(until(5), context(Store()))
    assert (result["status"], result["pauses"]) == ("completed", [])


@both_ways
def test_a_campaign_that_somebody_paused_is_not_paused_by_the_task(sandbox, way, just_before_the_pause):
    just_before_the_pause(status="paused")
    with pytest.raises(AirflowFailException, match=r"over, and it was paused already; .*CALLING_HOURS_OVER"):
        way(until(5), context(Store()))
    assert sandbox.request_count("pause", "long") == 1


@both_ways
def test_a_campaign_that_somebody_stopped_is_a_stopped_one(sandbox, way, just_before_the_pause):
    just_before_the_pause(status="stopped")
    with pytest.raises(AirflowFailException, match=r"it was stopped .*CAMPAIGN_STOPPED"):
        way(until(5), context(Store()))


@both_ways
def test_a_campaign_that_is_seen_to_be_paused_is_waited_for_beyond_the_closing(sandbox, way):
    steps = (is_waiting(sandbox, "long"), change(sandbox, "long", status="paused"))
    later = (lambda: sandbox.request_count("get", "long") > 12, complete(sandbox, "long"))
    with meanwhile(*steps, *later):
        result = way(until(5, poll_interval=1), context(Store()))
    assert (result["status"], sandbox.request_count("pause")) == ("completed", 0)


@both_ways
def test_a_later_try_outside_the_hours_pauses_what_runs(sandbox, clock, way, paused_at):
    """As after a worker that died at closing."""
    store = Store()
    way(Starting(wait_for_completion=False), context(store))
    closed = CallingHours(
        (now() - timedelta(hours=2)).time(), (now() - timedelta(hours=1)).time(), "UTC", over_midnight=True
    )
    make = Starting(calling_hours=closed, poll_interval=60)
    with pytest.raises(AirflowFailException, match=r"so it was paused; .*CALLING_HOURS_OVER"):
        way(make, context(store, try_number=2))
    assert paused_at == [pytest.approx(clock.time(), abs=2)]


@both_ways
def test_the_task_may_let_it_go_on(sandbox, way):
    with meanwhile(lambda: sandbox.request_count("get", "long") > 12, complete(sandbox, "long")):
        result = way(until(5, at_closing="go_on", poll_interval=1), context(Store()))
    assert (result["status"], sandbox.request_count("pause")) == ("completed", 0)
    assert "pauses" not in result


def test_a_task_that_follows_nothing_says_until_when_the_hours_are(sandbox, said):
    Starting(calling_hours=closing_in(5), wait_for_completion=False)(deferrable=False).execute(context())
    (line,) = [line for line in said() if "was started" in line]
    assert "Its calling hours close on" in line
    assert "nobody pauses it then" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at_closing": "stop"}, "at_closing must be one of pause, pause_and_resume, go_on; got 'stop'"),
        ({"at_closing": "paus"}, "did you mean 'pause'"),
        ({"at_closing": True}, "at_closing must be one of"),
        ({"at_closing": "pause", "calling_hours": None}, "at_closing='pause' needs calling_hours"),
        ({"at_closing": "pause", "wait_for_completion": False}, "only a task that follows its campaign can pause it"),
        ({"stop_after_calls": 0}, "stop_after_calls must be a whole number of 1 or more"),
        ({"stop_after_calls": 5, "wait_for_completion": False}, "stop_after_calls: only a task that waits"),
        ({"judge_success_rate_after": 5}, "judge_success_rate_after needs min_success_rate"),
        ({"judge_success_rate_after": "5", "min_success_rate": 50}, "must be a whole number of 1 or more"),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments, message):
    hours = CallingHours("09:00", "17:00", "UTC")
    with pytest.raises(ValueError, match=message):
        Starting(**{"calling_hours": hours, **arguments})(deferrable=False)


# A limit of calls.


def limited(**arguments):
    return Starting(**{"poll_interval": 1, "stop_after_calls": 100, **arguments})


@both_ways
def test_after_enough_calls_the_campaign_is_paused(sandbox, way):
    sandbox.speed = 300
    result = way(limited(), context(Store()))
    assert (result["status"], result["started_by_task"]) == ("paused", True)
    (pause,) = result["pauses"]
    assert pause["why"] == "CALL_LIMIT_REACHED"
    finished = result["statistics"]["calls_completed"] + result["statistics"]["calls_failed"]
    assert finished >= 100
    assert sandbox.status("long") == "paused"
    assert sandbox.request_count("pause", "long") == 1


@both_ways
def test_a_limit_may_fail(sandbox, way):
    sandbox.speed = 300
    with pytest.raises(
        AirflowFailException, match=r"calls have finished, and stop_after_calls is 100, so it was paused"
    ):
        way(limited(outcomes={"CALL_LIMIT_REACHED": "fail"}), context(Store()))


@both_ways
def test_a_campaign_with_fewer_calls_is_completed(sandbox, way):
    sandbox.speed = 600
    result = way(limited(campaign_id="ready"), context(Store()))
    assert (result["status"], result["pauses"]) == ("completed", [])
    assert result["statistics"]["total_contacts"] == 20


@both_ways
def test_statistics_that_cannot_be_read_do_not_undo_the_limit(sandbox, way, said):
    sandbox.speed = 300
    sandbox.inject("status", "stats", status=403, times=None)
    result = way(limited(), context(Store()))
    assert (result["status"], result["statistics"]) == ("paused", None)
    assert any("it is paused, so the task goes on without them" in line for line in said())


# A campaign that goes wrong.


def judged(**arguments):
    return Starting(**{"poll_interval": 1, "judge_success_rate_after": 50, "min_success_rate": 90, **arguments})


@both_ways
def test_a_falling_success_rate_pauses_the_campaign(sandbox, way):
    sandbox.speed = 300
    with pytest.raises(
        AirflowFailException,
        match=r"[78][0-9.]+ % of [0-9,]+ finished calls were successful, and at least 90 % is wanted, so it was "
        r"paused; .*SUCCESS_RATE_TOO_LOW",
    ):
        way(judged(), context(Store()))
    assert sandbox.status("long") == "paused"


@both_ways
def test_a_success_rate_that_is_good_enough_pauses_nothing(sandbox, way):
    sandbox.speed = 300
    with meanwhile(lambda: sandbox.request_count("stats", "long") >= 3, complete(sandbox, "long")):
        result = way(judged(min_success_rate=10), context(Store()))
    assert (result["status"], result["pauses"]) == ("completed", [])


@both_ways
def test_before_so_many_calls_nothing_is_judged(sandbox, way):
    with meanwhile(lambda: sandbox.request_count("get", "long") >= 8, complete(sandbox, "long")):
        way(judged(judge_success_rate_after=9000, outcomes={"SUCCESS_RATE_TOO_LOW": "succeed"}), context(Store()))
    # The final statistics alone.
    assert sandbox.request_count("stats", "long") <= 2


@both_ways
def test_statistics_that_cannot_be_read_judge_nothing(sandbox, way):
    sandbox.speed = 300
    sandbox.inject("status", "stats", status=503, times=4)
    with pytest.raises(AirflowFailException, match="SUCCESS_RATE_TOO_LOW"):
        way(judged(), context(Store()))


# Kills.


def test_a_kill_at_closing_pauses_all_the_same(sandbox, monkeypatch):
    operator = until(5)(deferrable=False)
    run = context(Store())

    def kill():
        run["ti"].state = "failed"
        operator.on_kill()

    sandbox.inject("status", "pause", status=503, times=2)
    in_wait(monkeypatch, lambda: sandbox.request_count("pause", "long") >= 1, kill)
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(run)
    assert sandbox.status("long") == "paused"


def test_what_a_trigger_is_given_is_small_and_plain(sandbox):
    from airflow.providers.common.compat.sdk import TaskDeferred

    with pytest.raises(TaskDeferred) as caught:
        until(5)(deferrable=True).execute(context(Store()))
    _, arguments = caught.value.trigger.serialize()
    windows = arguments["arguments"]["limits"]["open_times"]
    assert 13 <= len(windows) <= 15
    assert len(json.dumps(arguments)) < 3000


# What a review found.


def test_a_calendar_that_fails_later_leaves_no_started_campaign_alone(sandbox, paused_at, said):
    """It has no dates of next week; the campaign runs by the time that is found out."""
    window = closing_in(5)
    last = now().date() + timedelta(days=3)
    hours = CallingHours(window.start, window.end, "UTC", except_dates=fails_after, over_midnight=True)
    fails_after.last = last
    make = Starting(calling_hours=hours, poll_interval=60, outcomes=SUCCEED)
    result = make(deferrable=False).execute(context(Store()))
    assert result["status"] == "paused"
    assert any("hours are known until that date only" in line for line in said())


def fails_after(day):
    if day > fails_after.last:
        raise KeyError("no calendar of that week")
    return False


def test_a_deadline_does_not_cut_a_pause_short(sandbox, clock):
    """In the triggerer: the pause fails until after completion_timeout."""
    sandbox.inject("status", "pause", status=503, times=5)
    make, began = until(5, completion_timeout=7), clock.time()
    with pytest.raises(AirflowFailException):
        deferred(make, context(Store()))
    assert sandbox.status("long") == "paused"
    # After the deadline, too, there is more time from one to the next.
    assert (sandbox.request_count("pause", "long"), clock.time() - began > 20) == (6, True)


@both_ways
def test_a_task_that_comes_late_pauses_what_runs_outside_its_hours(sandbox, clock, way):
    """Its time is over, and so are its hours: no triggerer ran."""
    store = Store()
    way(Starting(wait_for_completion=False), context(store))
    closed = CallingHours(
        (now() - timedelta(hours=2)).time(), (now() - timedelta(hours=1)).time(), "UTC", over_midnight=True
    )
    with pytest.raises(AirflowFailException, match="CALLING_HOURS_OVER"):
        way(Starting(calling_hours=closed, completion_timeout=0, poll_interval=60), context(store, try_number=2))
    assert sandbox.status("long") == "paused"


@both_ways
def test_a_campaign_that_a_person_let_go_on_after_the_last_look_is_paused(sandbox, way, paused_at):
    pausing = (is_waiting(sandbox, "long"), change(sandbox, "long", status="paused"))

    def go_on():
        sandbox.inject("status", "list", status=503, times=None)
        sandbox.inject("status", "get", status=503, times=None)
        sandbox.sandbox.store.change("long", status="running")

    seen = lambda: sandbox.request_count("get", "long") >= 4  # noqa: E731
    with meanwhile(*pausing, seen, go_on):
        assert way(until(9, outcomes=SUCCEED, poll_interval=1), context(Store()))["status"] == "paused"
    assert len(paused_at) == 1


@both_ways
def test_statistics_that_are_refused_for_long_hold_up_no_pause(sandbox, clock, way, paused_at):
    sandbox.speed = 60
    closes = clock.time() + 20
    sandbox.inject("status", "stats", status=429, headers={"Retry-After": "50"}, times=None)
    make = until(20, outcomes=SUCCEED, poll_interval=2, judge_success_rate_after=1, min_success_rate=1)
    way(make, context(Store()))
    assert paused_at[0] == pytest.approx(closes, abs=0.5)


@both_ways
def test_a_status_that_nobody_knows_is_paused_with_patience(sandbox, clock, way, monkeypatch):
    """The service refuses the pause, and shows a status that is neither running nor paused nor over."""
    clock.limit = 400

    def waiting(campaign_id):
        monkeypatch.setattr(sandbox.sandbox.store, "pause", original)
        sandbox.sandbox.store.change(campaign_id, status="pending")
        return original(campaign_id)

    original = sandbox.sandbox.store.pause
    monkeypatch.setattr(sandbox.sandbox.store, "pause", waiting)
    later = (lambda: sandbox.request_count("pause") >= 6, change(sandbox, "long", status="running"))
    with meanwhile(*later):
        assert way(until(5, outcomes=SUCCEED), context(Store()))["status"] == "paused"
    assert 6 <= sandbox.request_count("pause") <= 8


@both_ways
def test_a_limit_counts_from_the_start_on(sandbox, way):
    sandbox.speed = 300
    sandbox.add_campaign(id="begun", status="paused", total_count=10_000, completed_count=500)
    result = way(limited(campaign_id="begun"), context(Store()))
    assert result["statistics"]["calls_completed"] + result["statistics"]["calls_failed"] >= 600


@both_ways
def test_somebody_elses_campaign_is_not_paused_at_closing(sandbox, way):
    sandbox.add_campaign(id="theirs", status="running", total_count=10_000)
    make = until(5, campaign_id="theirs", outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"}, poll_interval=1)
    with meanwhile(lambda: sandbox.request_count("get", "theirs") > 9, complete(sandbox, "theirs")):
        result = way(make, context(Store()))
    assert (result["status"], sandbox.request_count("pause")) == ("completed", 0)


def test_a_retry_after_a_timeout_has_all_of_its_time(sandbox, clock):
    """The deadline of the try before is not its own."""
    store, make = Store(), Starting(completion_timeout=20, outcomes={"COMPLETION_TIMEOUT": "retry"}, poll_interval=2)
    for try_number in (1, 2):
        began = clock.time()
        with pytest.raises(VoiceGenieRetryException):
            deferred(make, context(store, try_number=try_number))
        assert clock.time() - began >= 19


@both_ways
def test_a_pause_that_may_be_from_before_the_start_proves_nothing(sandbox, clock, way):
    """It was paused before, and the response to the pause at closing is lost: the service may show the old one."""
    sandbox.sandbox.store.change("long", status="paused")
    sandbox.inject("close", "pause", after_acting=True)
    assert way(until(5, outcomes=SUCCEED, poll_interval=2), context(Store()))["status"] == "paused"
    assert sandbox.status("long") == "paused"
    assert sandbox.request_count("pause") <= 12
    assert sandbox.request_count("get") <= 16
