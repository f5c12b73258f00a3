# SPDX-License-Identifier: Apache-2.0
"""A campaign that is paused at closing and started again at opening: each time is a start, and each opening has one."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout, TaskDeferred
from airflow.providers.common.compat.standard.triggers import TimeDeltaTrigger
from helpers.clock import now
from helpers.tasks import Starting, Store, change, complete, context, event_of, in_worker, meanwhile

from airflow_provider_voicegenie.operators import campaign as operators
from airflow_provider_voicegenie.operators.campaign import CallingHours
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.triggers.wait import WaitTrigger


@pytest.fixture(autouse=True)
def _keeps_state(monkeypatch):
    """Also beside an Airflow that keeps nothing across tries: the store of the tests does."""
    monkeypatch.setattr(operators, "KEEPS_TASK_STATE", True)


@pytest.fixture
def starts(sandbox, clock, monkeypatch):
    """Return when starts and pauses came to the service, in seconds from now on."""
    found, began, store = [], clock.time(), sandbox.sandbox.store
    for name in ("start", "pause"):
        original = getattr(store, name)

        def act(*arguments, name=name, original=original):
            found.append((name, round(clock.time() - began)))
            return original(*arguments)

        monkeypatch.setattr(store, name, act)
    return found


def windows(*times):
    """Return hours that are open from some second on until another."""
    return [
        CallingHours(
            (now() + timedelta(seconds=a)).time(), (now() + timedelta(seconds=b)).time(), "UTC", over_midnight=True
        )
        for a, b in times
    ]


def days(*times, **arguments):
    hours = windows(*(times or ((-1800, 5), (25, 35), (55, 65))))
    return Starting(**{"calling_hours": hours, "at_closing": "pause_and_resume", "poll_interval": 2, **arguments})


def deferred(make, run):
    """Wait in the triggerer, and let another operator go on after each deferral."""
    operator, method, event = make(deferrable=True), "execute", None
    with pytest.MonkeyPatch.context() as patch:
        # Airflow's trigger counts from now on.
        patch.setattr(sys.modules[TimeDeltaTrigger.__module__].timezone, "utcnow", now)
        while True:
            try:
                if method == "execute":
                    return operator.execute(run)
                return operator.resume_execution(method, {"event": event}, run)
            except TaskDeferred as deferral:
                event, method = event_of(deferral.trigger), deferral.method_name
                run["ti"].next_method = method
                operator = make(deferrable=True)


WAYS = pytest.mark.parametrize("way", [in_worker, deferred], ids=["worker", "deferred"])


@WAYS
def test_one_start_for_each_opening_until_it_is_completed(sandbox, way, starts):
    with meanwhile(lambda: len(starts) == 5, complete(sandbox, "long")):
        result = way(days(), context(Store()))
    assert starts == [("start", 0), ("pause", 5), ("start", 25), ("pause", 35), ("start", 55)]
    assert (result["status"], result["started_by_task"]) == ("completed", True)
    assert [pause["why"] for pause in result["pauses"]] == ["CALLING_HOURS_OVER"] * 2


def test_a_kill_in_the_wait_of_a_later_day_is_not_hidden_by_the_end_of_an_earlier_one(sandbox, starts, monkeypatch):
    run, noted, original = context(Store()), [], event_of

    def event_of_a_wait(trigger):
        if isinstance(trigger, WaitTrigger):
            noted.append(run["ti"].xcom.get("voicegenie_wait_is_over"))
            # As the triggerer does once it is over.
            run["ti"].xcom["voicegenie_wait_is_over"] = True
        return original(trigger)

    monkeypatch.setitem(deferred.__globals__, "event_of", event_of_a_wait)
    with meanwhile(lambda: len(starts) == 3, complete(sandbox, "long")):
        deferred(days(), run)
    assert noted == [None, False]


@WAYS
def test_completion_timeout_counts_all_days(sandbox, way, starts):
    with pytest.raises(AirflowFailException, match="COMPLETION_TIMEOUT"):
        way(days(completion_timeout=45), context(Store()))
    assert starts == [("start", 0), ("pause", 5), ("start", 25), ("pause", 35)]
    assert sandbox.status("long") == "paused"


@WAYS
@pytest.mark.parametrize(("status", "words"), [("stopped", "CAMPAIGN_STOPPED"), ("failed", "CAMPAIGN_FAILED")])
def test_one_that_ended_meanwhile_is_not_started(sandbox, way, starts, status, words):
    steps = (lambda: len(starts) == 2, change(sandbox, "long", status=status))
    with meanwhile(*steps), pytest.raises(AirflowFailException, match=words):
        way(days(), context(Store()))
    assert sandbox.start_count("long") == 1


@WAYS
def test_one_that_somebody_started_meanwhile_is_followed(sandbox, way, starts, said):
    steps = (lambda: len(starts) == 2, change(sandbox, "long", status="running"))
    later = (lambda: any("somebody has started it" in line for line in said()), complete(sandbox, "long"))
    with meanwhile(*steps, *later):
        result = way(days((-1800, 5), (25, 100)), context(Store()))
    assert result["status"] == "completed"
    assert sandbox.start_count("long") == 1


@WAYS
def test_one_that_somebody_started_and_paused_is_not_started_again(sandbox, way, starts, said):
    def start_and_pause():
        sandbox.sandbox.store.start("long")
        sandbox.sandbox.store.pause("long")

    later = (lambda: sandbox.request_count("get", "long") > 10, complete(sandbox, "long"))
    sandbox.sandbox.store.change("long", status="paused")
    clocked = lambda: len(starts) == 2  # noqa: E731
    with meanwhile(clocked, start_and_pause, *later):
        result = way(days((-1800, 15), (55, 100)), context(Store()))
    assert result["status"] == "completed"
    assert sandbox.request_count("start", "long") == 1
    assert any("started and paused since this task paused it" in line for line in said())


@WAYS
def test_one_that_somebody_else_paused_at_closing_is_left(sandbox, way, monkeypatch):
    store = sandbox.sandbox.store
    original = store.pause

    def pause(campaign_id):
        store.change(campaign_id, status="paused")
        return original(campaign_id)

    monkeypatch.setattr(store, "pause", pause)
    with pytest.raises(AirflowFailException, match=r"it was paused already; .*CALLING_HOURS_OVER"):
        way(days(), context(Store()))
    assert sandbox.start_count("long") == 1


@WAYS
def test_a_start_at_opening_whose_response_is_lost_is_settled(sandbox, way, starts):
    def lose():
        sandbox.inject("close", "start", after_acting=True)

    with meanwhile(lambda: len(starts) == 2, lose, lambda: len(starts) == 3, complete(sandbox, "long")):
        assert way(days((-1800, 5), (25, 110)), context(Store()))["status"] == "completed"
    assert sandbox.start_count("long") == 2


@WAYS
def test_a_start_at_opening_that_did_not_take_effect_is_for_a_later_try(sandbox, way, starts):
    store, make = Store(), days((-1800, 5), (25, 110))

    def lose():
        sandbox.inject("close", "start")

    with meanwhile(lambda: len(starts) == 2, lose), pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
        way(make, context(store))
    assert sandbox.start_count("long") == 1
    with meanwhile(lambda: len(starts) == 3, complete(sandbox, "long")):
        assert way(make, context(store, try_number=2))["status"] == "completed"
    assert sandbox.start_count("long") == 2


@WAYS
def test_the_number_of_people_is_bounded_at_each_opening(sandbox, way, starts):
    steps = (lambda: len(starts) == 2, change(sandbox, "long", total_count=20_000))
    with meanwhile(*steps), pytest.raises(AirflowFailException, match="TOO_MANY_CONTACTS"):
        way(days(max_contacts=10_000), context(Store()))
    assert sandbox.start_count("long") == 1


@WAYS
def test_lateness_is_of_the_run_and_not_of_the_opening(sandbox, way, starts):
    run = context(Store())
    run["dag_run"].run_type = "scheduled"
    with meanwhile(lambda: len(starts) == 3, complete(sandbox, "long")):
        assert way(days(max_lateness=10), run)["status"] == "completed"
    assert sandbox.start_count("long") == 2


# Tries, kills, and what is over.


def paused_at_closing(make, store):
    """Let the process of a first try die while it waits for the opening."""
    run = context(store)
    with pytest.raises(TaskDeferred) as caught:
        make(deferrable=True).execute(run)
    waiting = caught.value
    run["ti"].next_method = waiting.method_name
    with pytest.raises(TaskDeferred) as caught:
        make(deferrable=True).resume_execution(waiting.method_name, {"event": event_of(waiting.trigger)}, run)
    assert caught.value.method_name == "execute_again"
    return run


@WAYS
def test_a_later_try_goes_on_where_the_one_before_was(sandbox, way, starts):
    store, make = Store(), days()
    paused_at_closing(make, store)
    assert store["voicegenie_task"]["start"]["phase"] == "paused"
    with meanwhile(lambda: len(starts) == 3, complete(sandbox, "long")):
        result = way(make, context(store, try_number=2))
    assert starts == [("start", 0), ("pause", 5), ("start", 25)]
    assert (result["status"], len(result["pauses"])) == ("completed", 1)


@pytest.mark.parametrize("was_sent", [True, False])
def test_a_crash_between_record_and_start_at_opening(sandbox, starts, monkeypatch, was_sent):
    """The worker is killed outright while it sends the start of the second day."""
    store, make = Store(), days((-1800, 5), (25, 110), max_lateness=10)
    paused_at_closing(make, store)

    class Crash(BaseException):
        pass

    def crash(hook, campaign_id, **options):
        if was_sent:
            sandbox.sandbox.store.start(campaign_id)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("airflow_provider_voicegenie.hooks.voicegenie.VoiceGenieHook.start_campaign", crash)
        # A process that is killed outright takes nothing back.
        patch.setattr("airflow_provider_voicegenie.start.record.OwnStart.take_back", lambda own: None)
        with pytest.raises(Crash):
            make(deferrable=False).execute(context(store, try_number=2))
    assert store["voicegenie_task"]["start"]["phase"] == "sent"
    run = context(store, try_number=3)
    run["dag_run"].run_type = "scheduled"
    with meanwhile(lambda: len(starts) == 3, complete(sandbox, "long")):
        assert make(deferrable=False).execute(run)["status"] == "completed"
    assert sandbox.start_count("long") == 2


@pytest.mark.parametrize("later", [40, 100], ids=["at_the_deadline", "long_after_it"])
@WAYS
def test_a_later_try_starts_nothing_once_completion_timeout_is_over(sandbox, clock, way, starts, later):
    store, make = Store(), days((-1800, 5), (25, 170), completion_timeout=45)
    paused_at_closing(make, store)
    clock.sleep(later)
    with pytest.raises(AirflowFailException, match="COMPLETION_TIMEOUT"):
        way(make, context(store, try_number=2))
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "paused")


def test_a_start_at_opening_that_was_not_sent_is_still_to_be_sent(sandbox, starts, monkeypatch):
    store, make = Store(), days((-1800, 5), (25, 110))
    paused_at_closing(make, store)
    with monkeypatch.context() as patch:

        def fail(hook, campaign_id, **options):
            raise RuntimeError("no memory")

        patch.setattr("airflow_provider_voicegenie.hooks.voicegenie.VoiceGenieHook.start_campaign", fail)
        with pytest.raises(RuntimeError):
            make(deferrable=False).execute(context(store, try_number=2))
    assert store["voicegenie_task"]["start"]["phase"] == "paused"
    with meanwhile(lambda: len(starts) == 3, complete(sandbox, "long")):
        make(deferrable=False).execute(context(store, try_number=3))
    assert starts == [("start", 0), ("pause", 5), ("start", 25)]


def test_a_kill_while_it_waits_for_the_opening_starts_nothing(sandbox, clock, starts):
    operator = days()(deferrable=False)
    run = context(Store())

    def kill():
        run["ti"].state = "failed"
        operator.on_kill()

    # In the task's own thread, as a signal comes.
    clock.add_action(lambda: kill() if len(starts) == 2 and not operator.is_killed else None)
    with pytest.raises(VoiceGenieRetryException, match="ended from outside"):
        operator.execute(run)
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "paused")


def test_a_user_who_clears_the_task_at_night_begins_anew(sandbox, starts):
    store, make = Store(), days()
    paused_at_closing(make, store)
    with pytest.raises(AirflowFailException, match="OUTSIDE_CALLING_HOURS"):
        make(deferrable=False).execute(context(store, try_number=2, max_tries=4, clear_number=1))
    assert sandbox.start_count("long") == 1


def test_an_execution_timeout_at_night_ends_it_for_good(sandbox, clock, starts):
    store, make = Store(), days(execution_timeout=timedelta(seconds=15))
    with pytest.raises(AirflowTaskTimeout, match="so it stays paused"):
        make(deferrable=False).execute(context(store))
    assert store["voicegenie_task"]["start"]["phase"] == "timed_out"
    with pytest.raises(AirflowFailException, match="paused it when its execution_timeout was over"):
        make(deferrable=False).execute(context(store, try_number=2))
    assert sandbox.start_count("long") == 1


def test_hours_that_do_not_open_again_fail(sandbox, starts):
    # Where it is noon, whenever the test runs: a window over midnight would open again on its first day.
    hour = now().hour - 12
    local = now().astimezone(ZoneInfo(f"Etc/GMT{hour:+d}"))
    hours = CallingHours(
        (local - timedelta(seconds=1800)).time(),
        (local + timedelta(seconds=5)).time(),
        local.tzinfo.key,
        except_dates=[local.date() + timedelta(days=n) for n in range(1, 20)],
    )
    with pytest.raises(AirflowFailException, match="do not open within 14 days, so it stays paused"):
        Starting(calling_hours=hours, at_closing="pause_and_resume")(deferrable=False).execute(context(Store()))


def test_it_needs_an_airflow_that_keeps_what_was_paused(monkeypatch):
    monkeypatch.setattr(operators, "KEEPS_TASK_STATE", False)
    with pytest.raises(ValueError, match=r"at_closing='pause_and_resume' needs Airflow 3\.3"):
        Starting(calling_hours=CallingHours("09:00", "17:00", "UTC"), at_closing="pause_and_resume")(deferrable=False)


def test_what_is_remembered_is_plain(sandbox, starts):
    store = Store()
    paused_at_closing(days(completion_timeout=500), store)
    document = store["voicegenie_task"]
    assert json.loads(json.dumps(document)) == document
    assert set(document["hours"]) == {"calls_before", "deadline", "opens_at", "pauses"}


@WAYS
def test_a_start_that_is_refused_as_somebody_was_faster_is_followed(sandbox, way, starts, monkeypatch):
    """Or the service's own schedule, at nine o'clock sharp."""
    store = sandbox.sandbox.store
    original = store.start

    def start(campaign_id):
        if len(starts) == 2:
            store.change(campaign_id, status="running")
        return original(campaign_id)

    monkeypatch.setattr(store, "start", start)
    with meanwhile(lambda: len(starts) == 5, complete(sandbox, "long")):
        result = way(days((-1800, 5), (25, 35), (55, 110)), context(Store()))
    # Paused at the next closing, too, and started again.
    assert starts == [("start", 0), ("pause", 5), ("start", 25), ("pause", 35), ("start", 55)]
    assert result["status"] == "completed"


def test_a_machine_whose_clock_is_behind_starts_nothing_before_the_opening(sandbox, starts):
    """A triggerer whose clock is ahead closes the hours; the task resumes on a machine where they are open still."""
    store, make = Store(), days((-1800, 5), (25, 110))
    run = context(store)
    with pytest.raises(TaskDeferred) as caught:
        make(deferrable=True).execute(run)
    event = event_of(caught.value.trigger)
    event["at"] += 3
    run["ti"].next_method = caught.value.method_name
    with pytest.raises(TaskDeferred):
        make(deferrable=True).resume_execution(caught.value.method_name, {"event": event}, run)
    assert store["voicegenie_task"]["hours"]["opens_at"] == pytest.approx(now().timestamp() + 20, abs=1)


def test_an_execution_timeout_during_the_start_at_an_opening_leaves_what_is_known(sandbox, starts):
    store, make = Store(), days((-1800, 5), (25, 110))
    paused_at_closing(make, store)
    sandbox.inject("status", "pause", status=503, times=None)
    with pytest.MonkeyPatch.context() as patch:

        def start(hook, campaign_id, on_sending, **options):
            on_sending()
            sandbox.sandbox.store.start(campaign_id)
            raise AirflowTaskTimeout("execution_timeout")

        patch.setattr("airflow_provider_voicegenie.hooks.voicegenie.VoiceGenieHook.start_campaign", start)
        with pytest.raises(AirflowTaskTimeout):
            make(deferrable=False).execute(context(store, try_number=2))
    start = store["voicegenie_task"]["start"]
    # No pause got through, so the next try looks for the start that may have taken effect.
    assert (start["phase"], sandbox.status("long")) == ("sent", "running")


def test_without_a_time_of_the_start_nothing_is_compared_and_nothing_started(sandbox, starts, monkeypatch, said):
    store, make = Store(), days((-1800, 5), (25, 110))
    paused_at_closing(make, store)
    sandbox.sandbox.store.change("long", started_at=None)
    stats = "airflow_provider_voicegenie.hooks.voicegenie.VoiceGenieHook.get_campaign_stats"
    monkeypatch.setattr(stats, lambda hook, campaign_id, **options: SimpleNamespace(started_at=None))
    later = (lambda: sandbox.request_count("get", "long") > 6, complete(sandbox, "long"))
    with meanwhile(*later):
        result = make(deferrable=False).execute(context(store, try_number=2))
    assert (result["status"], result["started_by_task"]) == ("completed", True)
    assert sandbox.start_count("long") == 1
    assert any("may have been started and paused" in line for line in said())


@WAYS
def test_an_execution_timeout_at_night_ends_it_for_good_both_ways(sandbox, way, starts):
    store, make = Store(), days(execution_timeout=timedelta(seconds=15))
    run = context(store)
    with pytest.raises(AirflowTaskTimeout, match="so it stays paused"):
        way(make, run)
    assert store["voicegenie_task"]["start"]["phase"] == "timed_out"
    assert sandbox.start_count("long") == 1
