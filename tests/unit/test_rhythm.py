# SPDX-License-Identifier: Apache-2.0
"""
How long the waits of a worker pause between two looks, by a clock that jumps.

The sandbox answers over real HTTP. What takes minutes and hours passes at once, so waits have real lengths.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from helpers.tasks import Following, Starting, Store, change, complete, context

from airflow_provider_voicegenie.api.models import CampaignStats
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator
from airflow_provider_voicegenie.timing import timing


@pytest.fixture
def clock(clock):
    """Something may happen at each sleep; waits are as long as they are in real life."""
    clock.limit = 4000.0
    clock.at_sleep = lambda number: None

    def act():
        assert len(clock.sleeps) < 200, "it waits for ever"
        clock.at_sleep(len(clock.sleeps))

    clock.add_action(act)
    return clock


def trouble_now_and_then(sandbox, operation, times):
    """Every other request fails."""
    for _ in range(times):
        sandbox.inject("status", operation, status=503)
        sandbox.inject("delay", operation, seconds=0)


def keep_paused(**arguments):
    arguments = {"keep_paused_for": 3600, "poll_interval": 0.1, "deferrable": False, **arguments}
    return PauseCampaignOperator(task_id="pause", campaign_id="followed", **arguments)


def test_trouble_that_is_over_does_not_slow_a_wait(sandbox, clock):
    sandbox.inject("delay", "get", seconds=0)
    trouble_now_and_then(sandbox, "get", 6)
    clock.at_sleep = lambda number: complete(sandbox, "long")() if number == 12 else None
    assert Starting()(deferrable=False).execute(context(Store()))["status"] == "completed"
    # After one failure it looks again within a second; the interval while all is well is shorter.
    assert len(clock.sleeps) >= 12
    assert max(clock.sleeps) <= 1.0


def test_trouble_that_goes_on_slows_a_wait_but_not_for_long(sandbox, clock):
    sandbox.inject("delay", "get", seconds=0)
    sandbox.inject("status", "get", status=503, times=8)
    clock.at_sleep = lambda number: complete(sandbox, "long")() if number == 8 else None
    Starting()(deferrable=False).execute(context(Store()))
    growing = clock.sleeps[:6]
    assert growing == sorted(growing)
    assert 20 < max(clock.sleeps) <= 30


def test_trouble_brings_the_next_look_of_a_slow_wait_forward(sandbox, clock):
    sandbox.inject("delay", "get", seconds=0)
    sandbox.inject("status", "get", status=503)
    clock.at_sleep = lambda number: complete(sandbox, "long")()
    Starting(poll_interval=3600)(deferrable=False).execute(context(Store()))
    assert 1 <= clock.sleeps[0] <= 30


def test_the_service_says_when_a_wait_looks_again(sandbox, clock):
    sandbox.inject("delay", "get", seconds=0)
    sandbox.inject("status", "get", status=503, headers={"Retry-After": "17"})
    sandbox.inject("status", "get", status=503, headers={"Retry-After": "86400"})
    clock.at_sleep = lambda number: complete(sandbox, "long")() if number == 2 else None
    Starting()(deferrable=False).execute(context(Store()))
    # No longer than a minute.
    assert clock.sleeps[:2] == [17, 60]


@pytest.mark.parametrize("operation", ["get", "pause"])
def test_trouble_that_is_over_does_not_slow_what_keeps_a_campaign_paused(sandbox, clock, operation):
    sandbox.inject("delay", operation, seconds=0)
    trouble_now_and_then(sandbox, operation, 6)

    def act(number):
        # It is over in the end.
        change(sandbox, "followed", status="completed" if number >= 14 else "running")()

    clock.at_sleep = act
    assert keep_paused().execute(context(Store()))["status"] == "completed"
    assert len(clock.sleeps) >= 12
    assert max(clock.sleeps) <= 1.0


def test_pauses_that_fail_are_sent_ever_more_rarely_although_the_campaign_can_be_read(sandbox, clock):
    sandbox.inject("delay", "pause", seconds=0)
    sandbox.inject("status", "pause", status=503, times=8)
    clock.at_sleep = lambda number: change(sandbox, "followed", status="completed" if number >= 9 else "running")()
    assert keep_paused().execute(context(Store()))["status"] == "completed"
    assert clock.sleeps[1:7] == sorted(clock.sleeps[1:7])
    assert 20 < max(clock.sleeps) <= 30


def test_trouble_that_is_over_does_not_slow_the_reading_of_statistics(sandbox, clock, monkeypatch):
    """Between failures, they are read, and look old."""
    monkeypatch.setattr(timing, "statistics_lag", 32.0)
    complete(sandbox, "followed")()
    trouble_now_and_then(sandbox, "stats", 6)
    original = CampaignStats.from_json
    monkeypatch.setattr(CampaignStats, "from_json", lambda data: replace(original(data), is_final=False))
    result = Following(poke_interval=60)(deferrable=False).execute(context())
    assert result["statistics"] is not None
    assert clock.sleeps == [5.0] * len(clock.sleeps)
    assert len(clock.sleeps) >= 7


@pytest.mark.parametrize("completion_timeout", [10, 700])
def test_a_wait_ends_in_time_however_long_its_interval_is(sandbox, clock, completion_timeout):
    make = Starting(poll_interval=3600, completion_timeout=completion_timeout)
    with pytest.raises(AirflowFailException, match="COMPLETION_TIMEOUT"):
        make(deferrable=False).execute(context(Store()))
    assert sum(clock.sleeps) == pytest.approx(completion_timeout, abs=5)


def test_a_campaign_that_is_completed_by_the_deadline_is_completed(sandbox, clock):
    """There is a poll at the very end, however long the interval is."""
    clock.at_sleep = lambda number: complete(sandbox, "long")()
    result = Starting(poll_interval=3600, completion_timeout=10)(deferrable=False).execute(context(Store()))
    assert result["status"] == "completed"
    assert sum(clock.sleeps) == pytest.approx(10, abs=5)


def test_what_was_to_be_kept_paused_is_looked_at_when_its_time_is_over(sandbox, clock):
    result = keep_paused(keep_paused_for=700, poll_interval=3600).execute(context(Store()))
    assert result["status"] == "paused"
    assert sum(clock.sleeps) == pytest.approx(700, abs=5)
    assert sandbox.request_count("get") == 2


@pytest.mark.parametrize("make", [Starting, Following])
def test_a_completed_campaign_is_no_execution_timeout_as_its_statistics_cannot_be_read(sandbox, clock, make):
    """Airflow would end the task while it still tries."""
    campaign_id = make.campaign_id
    sandbox.inject("status", "stats", status=503, times=None)
    operator = make(execution_timeout=timedelta(seconds=100))(deferrable=False)
    if make is Starting:
        clock.at_sleep = lambda number: complete(sandbox, campaign_id)() if number == 1 else None
    else:
        complete(sandbox, campaign_id)()
    result = operator.execute(context(Store()))
    assert (result["status"], result["statistics"]) == ("completed", None)
    assert 50 < sum(clock.sleeps) < 100


def test_statistics_that_are_needed_are_tried_for_longer(sandbox, clock):
    complete(sandbox, "followed")()
    sandbox.inject("status", "stats", status=503, times=None)
    make = Following(min_success_rate=50, outcomes={"INTERNAL_SERVER_ERROR": "fail"})
    with pytest.raises(AirflowFailException, match="min_success_rate needs, cannot be read"):
        make(deferrable=False).execute(context())
    assert 290 < sum(clock.sleeps) < 400


def test_a_task_without_a_start_has_no_execution_deadline(sandbox, clock):
    """Airflow may not say when a task began."""
    complete(sandbox, "followed")()
    run = context(start_date=None)
    operator = Following(execution_timeout=timedelta(seconds=100))(deferrable=False)
    assert operator.execute(run)["status"] == "completed"
    make = Starting(wait_for_completion=False, execution_timeout=timedelta(seconds=100))
    assert make(deferrable=False).execute(context(Store(), start_date=None))["started_by_task"]
