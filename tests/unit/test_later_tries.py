# SPDX-License-Identifier: Apache-2.0
"""Later tries of a start: what they take over, find out, or start anew."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

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
    complete,
    context,
    in_wait,
    meanwhile,
)

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.memory import Generation
from airflow_provider_voicegenie.operators.campaign import CallingHours
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.start import find_out, send
from airflow_provider_voicegenie.start.evidence import has_started_itself
from airflow_provider_voicegenie.start.record import OwnStart, StartPhase, StartRecord
from airflow_provider_voicegenie.timing import timing


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
        patch.setattr(send, "find_out", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    assert store["voicegenie_task"]["start"]["phase"] == "sent"
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

    monkeypatch.setattr(timing, "statistics_lag", 32.0)
    monkeypatch.setattr(find_out.time, "sleep", sleep)
    result = Starting(wait_for_completion=False)(deferrable=False).execute(context(try_number=2))
    assert (result["status"], result["started_by_task"]) == (status, True)
    assert 31.9 < waits[0] < 33
    assert sandbox.start_count("long") == 1


@pytest.mark.parametrize("hours", [-5, 5])
@pytest.mark.parametrize("minutes", [-30, -1, 1])
def test_without_a_store_the_clocks_may_differ(sandbox, clock, monkeypatch, hours, minutes):
    difference = timedelta(hours=hours)
    monkeypatch.setattr(VoiceGenieHook, "server_time", lambda self: clock.time() + difference.total_seconds())
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
    change(sandbox, "long", status="paused", started_at=now())()
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


def test_without_a_store_a_later_try_starts_what_was_never_started(sandbox):
    for campaign_id in ("ready", "paused"):
        make = Starting(campaign_id=campaign_id, wait_for_completion=False)
        assert make(deferrable=False).execute(context(try_number=2))["started_by_task"]
        assert sandbox.start_count(campaign_id) == 1


def test_lost_start_of_a_paused_campaign_waits_for_fresh_statistics(sandbox, monkeypatch):
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
    monkeypatch.setattr(timing, "statistics_lag", 32.0)
    monkeypatch.setattr(find_out.time, "sleep", sleep)
    sandbox.inject("close", "start", after_acting=True)
    result = Starting(campaign_id="paused", wait_for_completion=False)(deferrable=False).execute(context(Store()))
    assert (result["status"], result["started_by_task"]) == ("paused", True)
    assert 25 < max(waits) < 33
    assert sandbox.start_count("paused") == 1


@both_ways
@pytest.mark.parametrize(("status", "condition"), [("failed", "CAMPAIGN_FAILED"), ("stopped", "CAMPAIGN_STOPPED")])
def test_later_try_reports_a_failed_campaign_as_failed(sandbox, way, status, condition):
    store = Store()
    Starting(wait_for_completion=False)(deferrable=False).execute(context(store))
    change(sandbox, "long", status=status)()
    with pytest.raises(AirflowFailException, match=condition):
        way(Starting(), context(store, try_number=2))


def test_later_try_finds_a_start_that_took_effect_late(sandbox):
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


def test_a_task_that_is_only_tried_out_is_not_taken_for_ended(sandbox):
    """`airflow tasks test` of Airflow 2 leaves the state of the task as it was."""
    run = context(state="success", test_mode=True)
    assert Starting(wait_for_completion=False)(deferrable=False).execute(run)["started_by_task"]


def test_a_start_from_before_this_run_is_not_taken_for_ours(sandbox):
    sandbox.sandbox.store.change("followed", started_at=now() - timedelta(hours=1))
    with pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"):
        Starting(campaign_id="followed")(deferrable=False).execute(context(try_number=2))


@pytest.mark.parametrize("status", ["running", "paused", "completed"])
@pytest.mark.parametrize("arguments", [{"wait_for_completion": False}, {"completion_timeout": 0.3}], ids=str)
def test_task_that_died_before_it_reported_its_end_does_not_start_again(sandbox, status, arguments):
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
    monkeypatch.setattr(timing, "pause_after_clear", 0.1)
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


def test_after_a_refusal_the_next_try_looks_for_no_start(sandbox):
    sandbox.inject("status", "start", status=429, times=1)
    store = Store()
    operator = Starting(wait_for_completion=False)(deferrable=False)
    with pytest.raises(VoiceGenieRetryException, match="RATE_LIMIT_EXCEEDED"):
        operator.execute(context(store))
    assert sandbox.request_count("get") == 1
    assert operator.execute(context(store, try_number=2))["started_by_task"]
    assert (sandbox.request_count("get"), sandbox.request_count("stats"), sandbox.request_count("start")) == (2, 0, 2)


def test_start_that_cannot_be_recorded_is_not_sent(sandbox):
    class Broken(Store):
        def set(self, key, value):
            raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        Starting()(deferrable=False).execute(context(Broken()))
    assert sandbox.request_count("start") == 0


def test_without_a_store_a_campaign_that_is_paused_by_now_is_not_started_again(sandbox):
    """Also if its start was outside the calling hours: only one that runs can have started itself."""
    run = context(try_number=2)
    run["dag_run"].start_date = now() - timedelta(hours=1)
    change(sandbox, "long", status="paused", started_at=now() - timedelta(minutes=30))()
    hours = CallingHours(
        (now() - timedelta(minutes=10)).time(), (now() + timedelta(hours=1)).time(), "UTC", over_midnight=True
    )
    result = Starting(calling_hours=hours, wait_for_completion=False)(deferrable=False).execute(run)
    assert (result["status"], result["started_by_task"]) == ("paused", True)
    assert sandbox.request_count("start") == 0


@pytest.mark.parametrize(("minutes", "is_own"), [(-61, False), (-11, True), (-1, True), (61, True), (63, False)])
def test_a_start_at_the_edge_of_the_hours_is_the_tasks_own(minutes, is_own):
    """The clocks of Airflow and the service may be two minutes apart."""
    opening = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
    hours = [CallingHours("08:50", "10:00", "UTC")]
    campaign = Campaign("c", CampaignStatus.RUNNING, "running")
    statistics = SimpleNamespace(started_at=opening + timedelta(minutes=minutes))
    assert has_started_itself(campaign, statistics, hours) is not is_own
    paused = Campaign("c", CampaignStatus.PAUSED, "paused")
    assert not has_started_itself(paused, statistics, hours)


@pytest.mark.parametrize("moment", ["before the start", "after it was refused"])
def test_an_owed_pause_is_not_forgotten_by_a_start_that_did_nothing(sandbox, moment):
    """An earlier end of the task could not pause the campaign, so whoever ends it again wants it paused."""
    before = Campaign("long", CampaignStatus.SCHEDULED, "scheduled")
    record = StartRecord.of(before, "long", "voicegenie_default", Generation(1, 0, 1), now())
    owed = record.in_phase(StartPhase.CLOSED, must_pause_on_kill=True)
    run = context(Store(voicegenie_task=owed.to_document()), try_number=2)
    operator = Starting(outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"})(deferrable=False)
    with pytest.MonkeyPatch.context() as patch:
        if moment == "before the start":

            def cut_off(hook, campaign_id, **callbacks):
                change(sandbox, "long", status="running")()
                raise AirflowTaskTimeout("Timeout")

            patch.setattr(VoiceGenieHook, "start_campaign", cut_off)
        else:
            refused = {"success": False, "message": "No", "error": "CAMPAIGN_ALREADY_RUNNING"}
            sandbox.inject("status", "start", status=400, body=json.dumps(refused))
            original = OwnStart.set_phase

            def set_phase(records, *arguments, **more):
                patch.setattr(OwnStart, "set_phase", original)
                change(sandbox, "long", status="running")()
                original(records, *arguments, **more)

            patch.setattr(OwnStart, "set_phase", set_phase)
            in_wait(patch, lambda: True, AirflowTaskTimeout("Timeout"))
        with pytest.raises(AirflowTaskTimeout):
            operator.execute(run)
    assert (sandbox.status("long"), sandbox.start_count("long")) == ("paused", 0)


def test_a_task_that_was_cleared_while_it_sent_waits_for_the_pause_that_follows(sandbox):
    store = Store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(send, "find_out", lambda *_, **__: 1 / 0)
        sandbox.inject("close", "start", after_acting=True)
        with pytest.raises(ZeroDivisionError):
            Starting()(deferrable=True).execute(context(store))
    assert (store["voicegenie_task"]["start"]["phase"], sandbox.status("long")) == ("sent", "running")
    reads = sandbox.request_count("get")
    with (
        meanwhile(lambda: sandbox.request_count("get") >= reads + 2, change(sandbox, "long", status="paused")),
        pytest.raises(TaskDeferred),
    ):
        Starting()(deferrable=True).execute(context(store, try_number=2, max_tries=3))
    assert sandbox.start_count("long") == 2


@pytest.mark.parametrize("campaign_id", ["long", "followed"])
def test_only_the_pause_of_its_own_campaign_is_waited_for(sandbox, campaign_id, monkeypatch):
    """It was cleared, and its templates may give another campaign, which runs and is nobody's to wait for."""
    store = Store()
    with pytest.raises(TaskDeferred):
        Starting()(deferrable=True).execute(context(store))
    monkeypatch.setattr(timing, "pause_after_clear", 0.5)
    reads = sandbox.request_count("get", campaign_id)
    with pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"):
        Starting(campaign_id=campaign_id)(deferrable=True).execute(context(store, try_number=2, max_tries=3))
    assert (sandbox.request_count("get", campaign_id) - reads > 1) is (campaign_id == "long")
