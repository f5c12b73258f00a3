# SPDX-License-Identifier: Apache-2.0
"""A start that the service refuses with a 429: it waits, in the worker or deferred, before the outcome applies."""

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
from helpers.tasks import (
    Starting,
    Store,
    both_ways,
    change,
    context,
    event_of,
    in_worker,
    meanwhile,
    shorten_times,
)

from airflow_provider_voicegenie.api.errors import RateLimitError
from airflow_provider_voicegenie.operators.campaign import CallingHours
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.start import refusals
from airflow_provider_voicegenie.start import run as start_run
from airflow_provider_voicegenie.start.refusals import PATIENCE, Refusals
from airflow_provider_voicegenie.timing import timing


@pytest.fixture(autouse=True)
def patient(sandbox, monkeypatch):
    """A connection with the usual attempts, and tasks that need not keep out of each other's way."""
    # Airflow's trigger counts from now on.
    monkeypatch.setattr(sys.modules[TimeDeltaTrigger.__module__].timezone, "utcnow", now)
    connection = sandbox.connection(timeout=60, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    monkeypatch.setattr(timing, "shortest_spread", 0.1)
    monkeypatch.setattr(timing, "longest_spread", 0.1)


def starting(**arguments):
    return Starting(**{"wait_for_completion": False, **arguments})


def refuse(sandbox, operation, times=1, seconds="1"):
    headers = {} if seconds is None else {"Retry-After": seconds}
    sandbox.inject("status", operation, status=429, headers=headers, times=times)


@both_ways
@pytest.mark.parametrize("operation", ["get", "start"])
@pytest.mark.parametrize("seconds", ["1", None])
def test_it_waits_as_asked_and_starts_once(sandbox, clock, way, operation, seconds, said):
    refuse(sandbox, operation, seconds=seconds)
    store, began = Store(), clock.time()
    result = way(starting(), context(store))
    assert clock.time() - began >= 0.99
    assert (result["campaign_id"], result["started_by_task"], result["status"]) == ("long", True, "running")
    assert sandbox.start_count("long") == 1
    assert sandbox.request_count(operation, "long") == 2
    assert sandbox.request_count("pause") == 0
    assert store["voicegenie_task"]["start"]["phase"] == "started"
    (line,) = [line for line in said() if "rate limit reached (429), so it is not started yet" in line]
    counted = "1 start(s) and 0 read(s)" if operation == "start" else "0 start(s) and 1 read(s)"
    assert f"({counted} were refused, max_attempts is 4)" in line


@both_ways
def test_it_is_sent_no_more_than_max_attempts_times(sandbox, way):
    refuse(sandbox, "start", times=None, seconds="0")
    with pytest.raises(VoiceGenieRetryException, match=r"4 start.s. and 0 read.s. were refused, and max") as caught:
        way(starting(), context())
    assert caught.value.retry_after == 0
    assert caught.value.condition == "RATE_LIMIT_EXCEEDED"
    # One message, and not the client's before it.
    assert not isinstance(caught.value.__context__, RateLimitError)
    assert sandbox.request_count("start") == 4
    assert sandbox.start_count("long") == 0


@both_ways
def test_the_author_decides_what_becomes_of_it_then(sandbox, way):
    refuse(sandbox, "start", times=None, seconds="0")
    with pytest.raises(AirflowSkipException, match="RATE_LIMIT_EXCEEDED"):
        way(starting(outcomes={"RATE_LIMIT_EXCEEDED": "skip"}), context())


@both_ways
@pytest.mark.parametrize("operation", ["get", "start"])
def test_one_attempt_means_one(sandbox, way, operation, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(max_attempts=1))
    refuse(sandbox, operation)
    with pytest.raises(VoiceGenieRetryException, match="RATE_LIMIT_EXCEEDED"):
        way(starting(), context())
    assert sandbox.request_count(operation) == 1


@both_ways
def test_reads_are_waited_out_for_longer(sandbox, way):
    refuse(sandbox, "get", times=6, seconds="0")
    assert way(starting(), context())["started_by_task"]
    assert (sandbox.request_count("get"), sandbox.start_count("long")) == (7, 1)


@both_ways
def test_other_trouble_of_a_read_is_repeated_as_ever(sandbox, way):
    sandbox.inject("status", "get", status=503, times=1)
    assert way(starting(), context())["started_by_task"]
    assert sandbox.request_count("get") == 2


@both_ways
def test_two_hours_are_the_longest(sandbox, way):
    refuse(sandbox, "start", seconds=str(2 * 3600 + 10))
    with pytest.raises(VoiceGenieRetryException, match="RATE_LIMIT_EXCEEDED"):
        way(starting(), context())


@both_ways
def test_everything_is_checked_anew(sandbox, way):
    refuse(sandbox, "start")
    with (
        meanwhile(lambda: sandbox.request_count("start") == 1, change(sandbox, "long", status="running")),
        pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"),
    ):
        way(starting(), context(Store()))
    assert sandbox.request_count("start") == 1


def closing_in(seconds):
    return CallingHours(
        (now() - timedelta(hours=1)).time(), (now() + timedelta(seconds=seconds)).time(), "UTC", over_midnight=True
    )


@both_ways
@pytest.mark.parametrize("operation", ["get", "start"])
def test_it_does_not_wait_past_its_calling_hours(sandbox, way, operation):
    refuse(sandbox, operation, seconds="3600")
    with pytest.raises(VoiceGenieRetryException, match=r"its calling hours are over when .*RATE_LIMIT_EXCEEDED"):
        way(starting(calling_hours=closing_in(600)), context())
    assert sandbox.request_count(operation) == 1


@both_ways
def test_it_may_wait_for_the_next_calling_hours(sandbox, clock, way, monkeypatch):
    waits = []
    monkeypatch.setattr(start_run.StartRun, "_wait_before_start", lambda _, until: waits.append(until) or 1 / 0)
    refuse(sandbox, "start", seconds="3600")
    until = clock.time() + 3600
    with pytest.raises(ZeroDivisionError):
        way(starting(calling_hours=closing_in(600), outcomes={"OUTSIDE_CALLING_HOURS": "wait"}), context())
    assert until - 1 < waits[0].timestamp() < until + 60


@both_ways
def test_the_time_until_the_calling_hours_open_does_not_count(sandbox, clock, way, monkeypatch):
    """One 429 before they close, and one after they have opened, more than a day later."""
    waits = []

    def wait(started, until):
        waits.append((until, started._own.refusals))
        hours = CallingHours("00:00", "23:59:59.999999", "UTC") if len(waits) == 2 else later
        started._task.calling_hours = (hours,)
        if len(waits) == 4:
            1 / 0  # noqa: B018

    monkeypatch.setattr(start_run.StartRun, "_wait_before_start", wait)
    today = now().date()
    later = CallingHours(
        "00:00", "23:59:59.999999", "UTC", except_dates=[today + timedelta(days=day) for day in range(3)]
    )
    refuse(sandbox, "start", times=None, seconds="1")
    with pytest.raises(ZeroDivisionError):
        way(starting(outcomes={"OUTSIDE_CALLING_HOURS": "wait"}), context())
    assert [refused.starts for _, refused in waits] == [1, 1, 2, 2]
    until, closed = waits[1]
    assert closed.since == until.timestamp() > clock.time() + 24 * 3600


BOTH = {
    "a 429 that says success": {"status": 429, "body": '{"success": true, "data": {"campaign_id": "long"}}'},
    "a success that says 429": {"status": 200, "body": '{"success": false, "error": "RATE_LIMIT_EXCEEDED"}'},
}


@both_ways
@pytest.mark.parametrize("store", [True, False], ids=["3.3", "before"])
@pytest.mark.parametrize("response", BOTH.values(), ids=BOTH)
def test_a_response_that_shows_nothing_is_not_taken_for_a_refusal(sandbox, way, response, store, monkeypatch):
    shorten_times(monkeypatch)
    sandbox.inject("status", "start", times=None, **response)
    with pytest.raises((VoiceGenieRetryException, AirflowFailException)):
        way(starting(), context(Store() if store else None))
    assert sandbox.request_count("start") == 1


@both_ways
def test_it_does_not_wait_until_the_run_is_too_late(sandbox, way):
    refuse(sandbox, "start", seconds="3600")
    run = context()
    run["dag_run"].run_type = "scheduled"
    with pytest.raises(AirflowSkipException, match=r"when it is tried again, this run was due at .*RUN_TOO_LATE"):
        way(starting(max_lateness=600), run)


@both_ways
def test_execution_timeout_ends_it(sandbox, clock, way):
    began = clock.time()
    refuse(sandbox, "start", seconds="3600")
    with pytest.raises(AirflowTaskTimeout, match="execution_timeout was over before the campaign could be started"):
        way(starting(execution_timeout=timedelta(seconds=2)), context())
    assert clock.time() - began == pytest.approx(2, abs=0.01)
    assert sandbox.request_count("start") == 1


def test_a_kill_ends_the_wait_in_a_worker(sandbox, monkeypatch):
    refuse(sandbox, "start", seconds="3600")
    operator = starting()(deferrable=False)
    run = context(Store())

    def kill():
        run["ti"].state = "failed"
        operator._running._own.kill.pulled = True

    # What a signal would break off.
    monkeypatch.setattr(start_run.time, "sleep", lambda seconds: operator._running._own.kill.check())
    with (
        meanwhile(lambda: sandbox.request_count("start") == 1, kill),
        pytest.raises(VoiceGenieRetryException, match="ended from outside before it started anything"),
    ):
        operator.execute(run)
    assert sandbox.request_count("start") == 1
    assert sandbox.request_count("pause") == 0


def test_a_rehearsal_waits_too(sandbox):
    refuse(sandbox, "get", seconds="0")
    assert in_worker(starting(check_only=True), context())["check_only"]
    assert sandbox.request_count("start") == 0


def test_what_counts_is_kept_through_deferrals_and_not_through_tries(sandbox):
    refuse(sandbox, "start", times=None, seconds="0")
    run = context(Store())
    operator = starting()(deferrable=True)
    with pytest.raises(TaskDeferred) as caught:
        operator.execute(run)
    kept = run["ti"].xcom["voicegenie_task"]["wait"]["refusals"]
    assert kept[1:3] == [1, 1]
    for number in (2, 3):
        run["ti"].next_method = caught.value.method_name
        event = event_of(caught.value.trigger)
        with pytest.raises(TaskDeferred):
            starting()(deferrable=True).resume_execution("execute_again", {"event": event}, run)
        assert run["ti"].xcom["voicegenie_task"]["wait"]["refusals"][:3] == [kept[0], number, number]
    with pytest.raises(VoiceGenieRetryException):
        starting()(deferrable=True).resume_execution("execute_again", {"event": None}, run)
    # The next try.
    run["ti"].xcom.clear()
    with pytest.raises(TaskDeferred):
        starting()(deferrable=True).execute(run)
    assert run["ti"].xcom["voicegenie_task"]["wait"]["refusals"][1:3] == [1, 1]


def test_what_airflow_lost_starts_nothing(sandbox):
    with pytest.raises(AirflowFailException, match=r"Airflow has lost .* starts nothing"):
        starting()(deferrable=True).resume_execution("execute_again", {"event": None}, context())
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize(
    ("counted", "asked", "max_attempts", "seconds"),
    [
        (Refusals(1000, 1, 0), 5.0, 4, 5),
        (Refusals(1000, 1, 0), None, 4, 1),
        (Refusals(1000, 50, 3), 0.0, 4, 0),
        (Refusals(1000, 4, 4), 5.0, 4, None),
        (Refusals(1000, 1, 0), 5.0, 1, None),
        (Refusals(1000 - PATIENCE.total_seconds(), 9, 0), 0.0, 4, 0),
        (Refusals(1000 - PATIENCE.total_seconds(), 9, 0), 1.0, 4, None),
        (Refusals(1000, 1, 0), 1e15, 4, None),
    ],
)
def test_when_it_is_tried_again(counted, asked, max_attempts, seconds):
    wanted = None if seconds is None else datetime.fromtimestamp(1000 + seconds, UTC)
    assert counted.earliest_attempt(asked, 1000, max_attempts) == wanted


def test_refused_requests_are_counted():
    counted = Refusals().one_more(7.0, was_start=False).one_more(9.0, was_start=True)
    assert counted[:3] == (7.0, 2, 1)


@pytest.mark.parametrize(("before", "shortest", "longest"), [(0, 30, 240), (40, 30, 320), (1000, 30, 1200)])
def test_the_spread_grows_by_chance(before, shortest, longest, monkeypatch):
    monkeypatch.setattr(timing, "shortest_spread", 30.0)
    monkeypatch.setattr(timing, "longest_spread", 1200.0)
    spreads = {Refusals(1.0, 1, 0, before).one_more(2.0, was_start=True).spread for _ in range(300)}
    assert shortest <= min(spreads)
    assert longest * 0.9 < max(spreads) <= longest
    assert len(spreads) > 20


def test_a_spread_wait_ends_with_patience():
    earliest = datetime.fromtimestamp(1000, UTC)
    end = earliest + PATIENCE
    assert next(Refusals(1000, 1, 0, 60.0).spread_out(earliest)) == earliest + timedelta(seconds=60)
    assert next(Refusals(1000, 1, 0, 60.0).spread_out(end - timedelta(seconds=20))) == end
    assert next(Refusals(1000, 1, 0, 60.0).spread_out(end)) == end


@both_ways
@pytest.mark.parametrize("limit", ["calling_hours", "execution_timeout", "max_lateness"])
def test_nobody_waits_longer_by_chance_than_the_task_may_start(sandbox, clock, way, limit, monkeypatch):
    """It would be open a second later, and closed after the longest time that chance may choose."""
    monkeypatch.setattr(timing, "shortest_spread", 30.0)
    monkeypatch.setattr(timing, "longest_spread", 1200.0)
    monkeypatch.setattr(refusals.random, "uniform", lambda shortest, longest: longest)
    refuse(sandbox, "start", times=2)
    clock.limit = 300
    limits = {
        "calling_hours": {"calling_hours": closing_in(250)},
        "execution_timeout": {"execution_timeout": timedelta(seconds=250)},
        "max_lateness": {"max_lateness": timedelta(seconds=250)},
    }
    run, began = context(Store()), clock.time()
    run["dag_run"].run_type = "scheduled"
    assert way(starting(**limits[limit]), run)["started_by_task"]
    # The second time, half of four minutes.
    assert 30 + 120 <= clock.time() - began < 250


def test_a_refusal_after_other_trouble_is_not_waited_out_in_the_worker(sandbox, clock, said):
    sandbox.inject("status", "get", status=503, times=1)
    refuse(sandbox, "get", times=9, seconds="50")
    began = clock.time()
    with pytest.raises(TaskDeferred):
        starting()(deferrable=True).execute(context(Store()))
    assert clock.time() - began < 5
    assert sandbox.request_count("get") == 2
    assert [line for line in said() if "(attempt 1 of 4 failed)" in line]


def test_two_hours_count_from_the_first_refusal():
    refused = Refusals()
    for number, moment in enumerate((1000.0, 2000.0, 5000.0), start=1):
        refused = refused.one_more(moment, was_start=number == 2)
    assert refused[:3] == (1000.0, 3, 1)
    patience = PATIENCE.total_seconds()
    # It is the moment of the next attempt that counts.
    assert refused.earliest_attempt(10.0, 1000.0 + patience - 10, 4) is not None
    assert refused.earliest_attempt(10.0, 1000.0 + patience - 9, 4) is None
