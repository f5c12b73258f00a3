# SPDX-License-Identifier: Apache-2.0
"""Tasks that follow a campaign to its end, in a worker and deferred, over real HTTP."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    TaskDeferred,
)
from helpers.tasks import (
    ENDS,
    Following,
    Starting,
    Store,
    after_requests,
    both_tasks,
    both_ways,
    change,
    complete,
    context,
    event_of,
    in_wait,
    in_worker,
    is_waiting,
    meanwhile,
    resume,
)

from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.start.record import OwnStart
from airflow_provider_voicegenie.timing import timing


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


@both_ways
@both_tasks
def test_the_log_says_at_the_end_how_the_calls_went(sandbox, way, task, caplog, capfd):
    caplog.set_level(logging.INFO)
    with meanwhile(
        is_waiting(sandbox, task.campaign_id),
        complete(sandbox, task.campaign_id, total_count=20, completed_count=16, failed_count=4),
    ):
        way(task(), context())
    said = caplog.text + "".join(capfd.readouterr())
    assert f"Campaign {task.campaign_id!r} is completed: 16 of 20 calls successful (80 %), 4 failed." in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"total_count": 1250}, "1,250 contacts"),
        ({"total_count": 1}, "1 contact"),
        (
            {"status": "paused", "total_count": 20, "completed_count": 4, "failed_count": 1},
            "20 contacts (5 calls done before)",
        ),
    ],
)
@pytest.mark.parametrize("is_lost", [False, True])
def test_the_log_says_how_many_people_a_start_phones(sandbox, caplog, fields, words, is_lost):
    caplog.set_level(logging.INFO)
    sandbox.add_campaign(id="new", **fields)
    if is_lost:
        sandbox.inject("close", "start", after_acting=True)
    Starting(campaign_id="new", wait_for_completion=False)(deferrable=False).execute(context())
    more = ", and it goes on after a pause" if "status" in fields else ""
    expected = f"Campaign 'new' was started: {words}, status running{more}. The task does not wait for its end."
    assert [record.getMessage() for record in caplog.records if "was started" in record.getMessage()] == [expected]


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
@pytest.mark.parametrize(
    ("condition", "outcome"),
    # That each of them can have each outcome is the table's business, see test_outcomes.
    [*((condition, None) for condition in CONDITIONS), ("CAMPAIGN_STOPPED", "skip"), ("NOT_FOUND", "retry")],
)
def test_each_condition_of_a_wait_has_its_outcome(sandbox, way, task, condition, outcome):
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
@pytest.mark.parametrize("condition", ["CAMPAIGN_STOPPED", "SUCCESS_RATE_TOO_LOW"])
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

    pause, end = change(sandbox, task.campaign_id, status="paused"), complete(sandbox, task.campaign_id)
    with meanwhile(is_waiting(sandbox, task.campaign_id), pause, after_requests(sandbox, 4), end):
        assert way(task(), context())["status"] == "completed"
    if way is in_worker:  # what a trigger logs does not come by here
        said = [record for record in caplog.records if "CAMPAIGN_PAUSED: the wait goes on" in record.getMessage()]
        assert len(said) == 1


@both_ways
@pytest.mark.parametrize(("word", "is_lost"), [("paused", False), ("paused", True), ("on-hold", False)])
def test_a_campaign_that_is_shown_as_it_was_before_its_start_is_followed(sandbox, monkeypatch, way, is_lost, word):
    """The service shows a campaign as paused for some reads after its start."""
    monkeypatch.setattr(timing, "statistics_lag", 32.0)
    monkeypatch.setattr(timing, "start_read_delays", (0.0,))
    store, original = sandbox.sandbox.store, sandbox.sandbox.store.start
    sandbox.add_campaign(id="held", status=word, total_count=10**6)

    def start(campaign_id):
        store.change(campaign_id, status="scheduled")
        campaign = original(campaign_id)
        if not is_lost:
            store.change(campaign_id, status="paused")
        return campaign

    monkeypatch.setattr(store, "start", start)
    if is_lost:
        sandbox.inject("close", "start", after_acting=True)

    def show_as_before():
        if is_lost:
            # The first read showed the start; those that follow do not.
            change(sandbox, "held", status="paused")()

    def is_followed():
        return sandbox.request_count("start") == 1 and sandbox.request_count("get", "held") >= 2

    steps = [is_followed, show_as_before, after_requests(sandbox, 4), change(sandbox, "held", status="running")]
    with meanwhile(*steps, after_requests(sandbox, 2), complete(sandbox, "held")):
        task = Starting(campaign_id="held", outcomes={"CAMPAIGN_PAUSED": "fail"})
        assert way(task, context(Store()))["status"] == "completed"
    assert sandbox.start_count("held") == 1


@pytest.mark.parametrize(("seconds_ago", "is_old"), [(5, False), (40, True)])
def test_a_later_try_knows_how_old_its_start_is(sandbox, monkeypatch, seconds_ago, is_old):
    monkeypatch.setattr(timing, "statistics_lag", 32.0)
    store = Store()
    sandbox.add_campaign(id="held", status="paused", total_count=10**6)
    Starting(campaign_id="held", wait_for_completion=False)(deferrable=False).execute(context(store))
    record = store["voicegenie_task"]["start"]
    record["sent_at"] = (datetime.fromisoformat(record["sent_at"]) - timedelta(seconds=seconds_ago)).isoformat()
    with pytest.raises(TaskDeferred) as deferral:
        Starting(campaign_id="held")(deferrable=True).execute(context(store, try_number=2))
    assert ("pauses_count_from" in (deferral.value.trigger.arguments["counters"] or {})) is not is_old


@both_ways
def test_temporary_trouble_does_not_end_the_wait_of_a_start(sandbox, way):
    """What an author says of the start's own trouble is nothing to the wait. See the fault table for the sensors."""

    def recover():
        complete(sandbox, "long")()
        sandbox.sandbox.faults.clear()

    fail = partial(sandbox.inject, "close", times=None)
    with meanwhile(is_waiting(sandbox, "long"), fail, after_requests(sandbox, 2), recover):
        assert way(Starting(outcomes={"CONNECTION_FAILED": "fail"}), context())["status"] == "completed"


def test_each_poll_in_a_worker_is_one_attempt(sandbox, monkeypatch):
    """The wait repeats by itself, and attempts of the client's own could outlast its time."""
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", sandbox.connection(max_attempts=4, timeout=60))
    run = context()

    def fail_from_now_on(*_, **__):
        sandbox.inject("status", "get", status=503, times=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnStart, "set_phase", fail_from_now_on)
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
    monkeypatch.setattr(timing, "statistics_delay", 0.1)
    sandbox.inject("status", "stats", status=503, times=2)
    with meanwhile(is_waiting(sandbox, task.campaign_id), complete(sandbox, task.campaign_id)):
        result = way(task(), context())
    assert result["statistics"]["total_contacts"] == 10_000
    assert sandbox.request_count("stats") == 3


@both_ways
@both_tasks
@pytest.mark.parametrize("minimum", [None, 50])
def test_statistics_that_stay_unreadable_end_the_wait_all_the_same(sandbox, monkeypatch, way, task, minimum):
    monkeypatch.setattr(timing, "statistics_delay", 0.1)
    monkeypatch.setattr(timing, "invalid_statistics_patience", 0.5)
    sandbox.inject("not_json", "stats", times=None)
    arguments = {"min_success_rate": minimum, "outcomes": {"INVALID_RESPONSE": "fail"}}
    with meanwhile(is_waiting(sandbox, task.campaign_id), complete(sandbox, task.campaign_id)):
        if minimum is None:
            result = way(task(**arguments), context())
            assert (result["status"], result["statistics"]) == ("completed", None)
        else:
            with pytest.raises(AirflowFailException, match=r"min_success_rate needs, cannot be read.*INVALID_RESPONSE"):
                way(task(**arguments), context())
    assert sandbox.request_count("stats") >= 2


@both_ways
@both_tasks
def test_a_completion_that_was_seen_in_time_is_no_timeout(sandbox, clock, monkeypatch, way, task):
    """The service's statistics may be half a minute old, and time may be over until they are not."""
    monkeypatch.setattr(timing, "statistics_delay", 0.3)
    monkeypatch.setattr(timing, "statistics_lag", 3.0)
    sandbox.sandbox.cache_stats = True
    VoiceGenieHook().get_campaign_stats(task.campaign_id)
    limit = {"completion_timeout": 2} if task is Starting else {"timeout": 2}
    with meanwhile(is_waiting(sandbox, task.campaign_id), complete(sandbox, task.campaign_id)):
        began = clock.time()
        result = way(task(**limit), context())
    assert clock.time() - began > 2
    assert (result["status"], result["statistics"]["total_contacts"]) == ("completed", 10_000)


@both_ways
def test_sensor_with_min_success_rate_waits_for_statistics(sandbox, monkeypatch, way):
    monkeypatch.setattr(timing, "statistics_delay", 0.1)
    monkeypatch.setattr(timing, "invalid_statistics_patience", 0.2)
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


_RESUME = """
import json, sys
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor
from helpers.tasks import context
results = []
for name, arguments, event, xcom in json.loads(sys.stdin.read()):
    task = {"Starting": StartCampaignOperator, "Following": CampaignCompletedSensor}[name]
    run = context(xcom=xcom)
    results.append(task(task_id="t", **arguments).resume_execution("execute_complete", {"event": event}, run))
print(json.dumps([results, sorted(sys.modules)]))
"""


@pytest.mark.timeout(600)
def test_a_resumed_task_that_has_the_statistics_needs_no_connection_and_no_http_library(sandbox):
    resumed = []
    for task in (Starting, Following):
        run = context()
        with pytest.raises(TaskDeferred) as deferral:
            task()(deferrable=True).execute(run)
        complete(sandbox, task.campaign_id)()
        arguments = {"campaign_id": task.campaign_id}
        if task is Starting:
            arguments["wait_for_completion"] = True
        resumed.append([task.__name__, arguments, event_of(deferral.value.trigger), run["ti"].xcom])
    process = subprocess.run(
        [sys.executable, "-c", _RESUME],
        input=json.dumps(resumed),
        env={name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN")},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    results, modules = json.loads(process.stdout.splitlines()[-1])
    for result in results:
        assert (result["status"], result["statistics"]["total_contacts"]) == ("completed", 10_000)
    assert len(results) == 2
    assert "airflow_provider_voicegenie.api.client" not in modules
    assert sandbox.request_count("stats") == 2


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_resumed_start_is_handed_its_record(sandbox, monkeypatch, is_lost):
    """Without it, it asks Airflow."""
    store = Store()
    run = context(store)
    with pytest.raises(TaskDeferred) as deferral:
        Starting()(deferrable=True).execute(run)
    assert store["voicegenie_task"]["start"]["must_pause_on_kill"]
    complete(sandbox, "long")()
    event = event_of(deferral.value.trigger)
    if is_lost:
        event["deferred"]["start"] = None
    asked = []
    monkeypatch.setattr(Store, "get", lambda store, key: asked.append(key) or dict.get(store, key))
    result = Starting()(deferrable=True).resume_execution("execute_complete", {"event": event}, run)
    assert (result["status"], result["started_by_task"]) == ("completed", True)
    assert asked == (["voicegenie_task"] if is_lost else [])
    assert store["voicegenie_task"]["start"]["phase"] == "started"
    assert not store["voicegenie_task"]["start"]["must_pause_on_kill"]


@both_tasks
def test_the_success_rate_of_statistics_from_the_triggerer(sandbox, task):
    run = context()
    with pytest.raises(TaskDeferred) as deferral:
        task(min_success_rate=90)(deferrable=True).execute(run)
    complete(sandbox, task.campaign_id, total_count=100, completed_count=80, failed_count=20)()
    event = event_of(deferral.value.trigger)
    assert event["result"]["statistics"]["success_rate"] == 80
    with pytest.raises(AirflowFailException, match="80 % of the finished calls were successful, and at least 90 %"):
        task(min_success_rate=90)(deferrable=True).resume_execution("execute_complete", {"event": event}, run)


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


def test_the_wait_in_the_triggerer_knows_what_the_start_knew(sandbox, clock):
    change(sandbox, "long", completed_count=5, failed_count=2)()
    with pytest.raises(TaskDeferred) as deferral:
        Starting(pause_on_kill=False, stall_timeout=60)(deferrable=True).execute(context())
    arguments = deferral.value.trigger.serialize()[1]
    assert arguments["pause_on_kill"] is False
    assert arguments["arguments"]["stall_timeout"] == 60
    seen = arguments["arguments"]["counters"]
    assert (seen["completed"], seen["failed"]) == (5, 2)
    assert seen["at"] == clock.time()


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
