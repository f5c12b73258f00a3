# SPDX-License-Identifier: Apache-2.0
"""
A start whose answer is lost, and what a task makes of it, by a clock of the tests' own.

The sandbox answers over real HTTP. What takes seconds and minutes passes at once, so waits have real lengths.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from helpers.tasks import Store, context

from airflow_provider_voicegenie.api import client
from airflow_provider_voicegenie.api.models import read_time, write_time
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.start import find_out, send, take_over

ALREADY_RUNNING = '{"success": false, "message": "Campaign is already running", "error": "CAMPAIGN_ALREADY_RUNNING"}'


class Clock:
    """Begins with the real time, and goes on by what is slept; things may happen at a moment of it."""

    def __init__(self):
        self.began = time.time()
        self.slept = 0.0
        self.sleeps = []
        self.events = []
        #: How far the service's clock is ahead of ours.
        self.service_ahead = 0.0

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.slept += seconds
        for event in [event for event in self.events if event[0] <= self.slept]:
            self.events.remove(event)
            event[1]()

    def time(self):
        return self.began + self.slept

    def at(self, seconds, act):
        self.events.append((seconds, act))


def set_time(monkeypatch, time):
    for module in (find_out, send, take_over):
        monkeypatch.setattr(module, "time", time)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    set_time(monkeypatch, SimpleNamespace(sleep=clock.sleep, time=clock.time, monotonic=clock.time))
    monkeypatch.setattr(VoiceGenieHook, "server_time", lambda hook: clock.time() + clock.service_ahead)
    return clock


@pytest.fixture
def sandbox(voicegenie_sandbox, monkeypatch):
    connection = voicegenie_sandbox.connection(max_attempts=1, timeout=60, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    for status in ("scheduled", "paused"):
        voicegenie_sandbox.add_campaign(id=status, status=status, total_count=10**6)
    return voicegenie_sandbox


def start(campaign_id, run=None, **arguments):
    return StartCampaignOperator(task_id="task", campaign_id=campaign_id, **arguments).execute(run or context(Store()))


def lose(sandbox, *, took_effect):
    sandbox.inject("close", "start", after_acting=took_effect)


def change(sandbox, campaign_id, **changes):
    """Change a campaign without a trace in the time of its last change."""
    campaign = sandbox.sandbox.store.find(campaign_id)
    updated_at = campaign.updated_at
    sandbox.sandbox.store.change(campaign_id, **changes)
    campaign.updated_at = updated_at


# How long, and how often.


def test_a_campaign_is_looked_at_four_times_in_seven_seconds(sandbox, clock):
    lose(sandbox, took_effect=False)
    with pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
        start("scheduled")
    # And once more with statistics that are surely from after the start.
    assert clock.sleeps == [0.0, 1.0, 2.0, 4.0, 25.0]
    assert [request.operation for request in sandbox.sandbox.requests] == ["get", "start", *["get"] * 5, "stats"]


def test_after_a_lost_start_of_a_paused_campaign_fresh_statistics_are_awaited(sandbox, clock):
    lose(sandbox, took_effect=False)
    with pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
        start("paused")
    # The service keeps them for 30 seconds, and its clock shows whole ones.
    assert 31.5 < clock.slept < 32.5


@pytest.mark.parametrize("after", [0, 1, 3, 7, 32])
def test_a_start_that_takes_effect_between_two_looks_is_found(sandbox, clock, after):
    lose(sandbox, took_effect=False)
    clock.at(after, lambda: sandbox.sandbox.store.start("scheduled"))
    assert start("scheduled")["started_by_task"]
    assert clock.slept == after
    assert sandbox.request_count("start") == 1


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("took_effect", [True, False])
def test_looks_that_fail_do_not_matter_if_one_succeeds(sandbox, clock, failing, took_effect):
    lose(sandbox, took_effect=took_effect)
    run = context(Store())
    # The first read of the campaign is that before the start.
    original, reads = VoiceGenieHook.get_campaign, []

    def get_campaign(hook, *arguments, **more):
        reads.append(1)
        if 1 < len(reads) <= 1 + failing:
            sandbox.inject("close", "get")
        return original(hook, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceGenieHook, "get_campaign", get_campaign)
        if took_effect:
            assert start("scheduled", run)["started_by_task"]
        else:
            with pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
                start("scheduled", run)
    assert sandbox.start_count("scheduled") == int(took_effect)


# What only the statistics tell.


@pytest.mark.parametrize("ahead", [0.0, 3600.0, -3600.0])
@pytest.mark.parametrize("took_effect", [True, False])
def test_statistics_show_a_start_that_was_paused_again(sandbox, clock, monkeypatch, ahead, took_effect):
    """By the service's own clock, whatever ours shows."""
    clock.service_ahead = ahead
    started_at = datetime.now(UTC) + timedelta(seconds=ahead)
    store, original = sandbox.sandbox.store, sandbox.sandbox.store.start

    def start_and_pause(campaign_id):
        updated_at = store.find(campaign_id).updated_at
        campaign = original(campaign_id)
        store.change(campaign_id, status="paused", started_at=started_at)
        campaign.updated_at = updated_at
        return campaign

    monkeypatch.setattr(store, "start", start_and_pause)
    # An earlier start, half a minute ago, is not this one.
    change(sandbox, "paused", started_at=started_at - timedelta(seconds=30))
    lose(sandbox, took_effect=took_effect)
    if took_effect:
        result = start("paused")
        assert (result["status"], result["started_by_task"]) == ("paused", True)
        # When the service says that it was, and not when we looked.
        assert read_time(result["started_at"]) == started_at
    else:
        with pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
            start("paused")
    assert sandbox.start_count("paused") == int(took_effect)


def test_a_later_try_judges_by_when_the_start_was_sent_and_not_by_now(sandbox, clock, monkeypatch):
    store = Store()
    lose(sandbox, took_effect=True)
    with monkeypatch.context() as patch:
        patch.setattr(send, "find_out", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start("paused", context(store))
    record = store["voicegenie_task"]["start"]
    sent_at = read_time(record["sent_at"]) - timedelta(hours=3)
    record["sent_at"] = write_time(sent_at)
    sandbox.sandbox.store.change("paused", status="paused", started_at=sent_at)
    sandbox.sandbox.store.find("paused").updated_at = read_time(record["before"]["updated_at"])
    result = start("paused", context(store, try_number=2))
    assert (result["status"], result["started_by_task"]) == ("paused", True)
    # The statistics have been up to date for hours: nobody waits for them.
    assert clock.slept < 10
    assert sandbox.start_count("paused") == 1


# Whose start it was.


@pytest.mark.parametrize("wait", [False, True])
def test_someone_elses_start_in_between_is_not_reported_as_ours(sandbox, clock, wait):
    sandbox.inject("status", "start", status=400, body=ALREADY_RUNNING)
    run = context(Store())
    original = VoiceGenieHook.start_campaign

    def start_campaign(hook, campaign_id, **callbacks):
        change(sandbox, campaign_id, status="running")
        return original(hook, campaign_id, **callbacks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VoiceGenieHook, "start_campaign", start_campaign)
        if not wait:
            with pytest.raises(AirflowSkipException, match="CAMPAIGN_ALREADY_RUNNING"):
                start("scheduled", run)
            return
        result = start("scheduled", run, outcomes={"CAMPAIGN_ALREADY_RUNNING": "succeed"})
    assert (result["status"], result["started_at"], result["started_by_task"]) == ("running", None, False)
    # Nor is it kept as one: the next try may start.
    assert run["task_state_store"]["voicegenie_task"]["start"]["phase"] == "closed"


# A later try.


@pytest.mark.parametrize("kind", ["close", "status", "not_json"])
def test_a_start_is_taken_over_though_its_campaign_cannot_be_read_now(sandbox, clock, kind):
    store = Store()
    start("scheduled", context(store))
    sandbox.inject(kind, "get")
    result = start("scheduled", context(store, try_number=2))
    assert (result["status"], result["started_by_task"]) == ("unknown", True)
    assert result["started_at"].endswith("Z")
    assert sandbox.request_count("start") == 1


def test_what_nobody_can_tell_is_said_with_what_to_do(sandbox, clock):
    lose(sandbox, took_effect=True)
    clock.at(0, lambda: sandbox.inject("close", "*", times=None))
    with pytest.raises(AirflowFailException, match=r"START_UNCONFIRMED") as caught:
        start("scheduled")
    assert "clear this task" in str(caught.value)
    # Nobody has looked in vain for long.
    assert clock.slept == 7


@pytest.mark.parametrize("after", [0, 1, 7])
def test_what_was_read_last_is_what_a_lost_start_returns(sandbox, clock, after):
    lose(sandbox, took_effect=False)
    clock.at(after, lambda: sandbox.sandbox.store.start("scheduled"))
    assert start("scheduled")["status"] == "running"


# A service that lags, and words and times that prove nothing.


@pytest.fixture
def lagging(sandbox, clock, monkeypatch):
    """A service that shows a campaign as it was for half a minute after its start: its statistics, or all of it."""
    store, original = sandbox.sandbox.store, sandbox.sandbox.store.start

    def lag(campaign_id, *, status_too, after="running"):
        def start(campaign_id):
            campaign = store.find(campaign_id)
            was = {"status": campaign.status, "started_at": campaign.started_at}
            updated_at = campaign.updated_at
            change(sandbox, campaign_id, status="scheduled")
            campaign = original(campaign_id)
            now = {"status": after, "started_at": campaign.started_at}
            change(sandbox, campaign_id, status=was["status"])
            campaign.started_at, campaign.updated_at = was["started_at"], updated_at

            def show():
                if not status_too:
                    change(sandbox, campaign_id, status=now["status"])
                campaign.started_at = now["started_at"]

            clock.at(clock.slept + 30, show)
            return campaign

        monkeypatch.setattr(store, "start", start)

    return lag


@pytest.mark.parametrize("campaign_id", ["scheduled", "paused", "queued"])
@pytest.mark.parametrize("status_too", [True, False])
def test_a_start_that_shows_late_is_ours_and_is_not_repeated(sandbox, clock, lagging, campaign_id, status_too):
    """The status lags, for half a minute or for good; the statistics are half a minute old."""
    sandbox.add_campaign(id="queued", status="queued", total_count=10**6)
    lagging(campaign_id, status_too=status_too)
    lose(sandbox, took_effect=True)
    run = context(Store())
    assert start(campaign_id, run)["started_by_task"]
    assert start(campaign_id, context(run["task_state_store"], try_number=2))["started_by_task"]
    assert sandbox.start_count(campaign_id) == 1


@pytest.mark.parametrize("words", [("queued", "dialing"), ("queued", "queued"), ("scheduled", "dialing")])
def test_words_that_nobody_knows_are_no_proof(sandbox, clock, words):
    sandbox.add_campaign(id="odd", status=words[0], total_count=10**6)
    lose(sandbox, took_effect=False)
    clock.at(0, lambda: change(sandbox, "odd", status=words[1]))
    run = context(Store())
    for number in (1, 2):
        with pytest.raises(AirflowFailException, match="START_UNCONFIRMED") as caught:
            start("odd", context(run["task_state_store"], try_number=number))
        assert f"is now {words[1]!r}" in str(caught.value)
    assert sandbox.request_count("start") == 1


def test_without_fresh_statistics_a_start_is_not_sent_again(sandbox, clock):
    sandbox.inject("status", "stats", status=500, times=None)
    lose(sandbox, took_effect=False)
    run = context(Store())
    for number in (1, 2):
        with pytest.raises(AirflowFailException, match=r"its statistics cannot be read now.*START_UNCONFIRMED"):
            start("scheduled", context(run["task_state_store"], try_number=number))
    assert sandbox.request_count("start") == 1


def test_a_planned_start_is_not_ours(sandbox, clock):
    sandbox.sandbox.store.find("scheduled").started_at = datetime.now(UTC) + timedelta(hours=20)
    lose(sandbox, took_effect=False)
    with pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
        start("scheduled")


def test_calls_that_go_on_after_a_pause_are_not_our_start(sandbox, clock):
    change(sandbox, "paused", completed_count=5, failed_count=0)
    lose(sandbox, took_effect=False)
    clock.at(1, lambda: change(sandbox, "paused", completed_count=6))
    with pytest.raises(AirflowFailException, match="START_UNCONFIRMED"):
        start("paused")
    assert sandbox.request_count("start") == 1


HOUR = 3600.0


@pytest.mark.parametrize("offsets", [(HOUR, HOUR), (-HOUR, -HOUR), (-1.8e9, -1.8e9), (HOUR, 0.0), (0.0, HOUR)])
@pytest.mark.parametrize("took_effect", [True, False])
def test_a_date_that_is_far_off_neither_makes_a_start_ours_nor_a_worker_sleep(
    sandbox, monkeypatch, offsets, took_effect
):
    """The service's times are right, but the `Date` before the start, and that after it, may be anything."""
    clock = Clock()
    set_time(monkeypatch, SimpleNamespace(sleep=clock.sleep, time=time.time, monotonic=time.monotonic))
    requests = sandbox.sandbox.requests

    def offset(headers, now):
        return offsets[any(request.operation == "start" for request in requests)]

    monkeypatch.setattr(client, "clock_offset", offset)
    store, original = sandbox.sandbox.store, sandbox.sandbox.store.start

    def start_and_pause(campaign_id):
        original(campaign_id)
        return store.change(campaign_id, status="paused")

    monkeypatch.setattr(store, "start", start_and_pause)
    change(sandbox, "paused", started_at=datetime.now(UTC) - timedelta(minutes=30))
    lose(sandbox, took_effect=took_effect)
    if took_effect:
        assert start("paused")["started_by_task"]
    else:
        is_known = abs(offsets[1]) < HOUR
        with pytest.raises(VoiceGenieRetryException if is_known else AirflowFailException):
            start("paused")
    assert clock.slept < 33
    assert sandbox.start_count("paused") == int(took_effect)


@pytest.mark.parametrize("offset", [-1.8e9, HOUR])
@pytest.mark.parametrize("minutes_ago", [60, 0])
def test_without_a_store_a_date_that_is_far_off_makes_no_old_start_ours(sandbox, monkeypatch, offset, minutes_ago):
    clock = Clock()
    set_time(monkeypatch, SimpleNamespace(sleep=clock.sleep, time=time.time, monotonic=time.monotonic))
    monkeypatch.setattr(client, "clock_offset", lambda headers, now: offset)
    change(sandbox, "paused", started_at=datetime.now(UTC) - timedelta(minutes=minutes_ago))
    if minutes_ago:
        with pytest.raises(AirflowFailException, match="START_UNCONFIRMED"):
            start("paused", context(try_number=2))
    else:
        assert start("paused", context(try_number=2))["started_by_task"]
    assert sandbox.request_count("start") == 0
    assert clock.slept < 33
