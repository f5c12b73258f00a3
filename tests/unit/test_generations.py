# SPDX-License-Identifier: Apache-2.0
"""A clear is a clear; a retry is none, nor is the clear of another task of the run."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from helpers.tasks import Starting, Store, TaskInstance, change, context, in_worker, meanwhile

from airflow_provider_voicegenie.memory import Generation, is_first_try, was_cleared
from airflow_provider_voicegenie.timing import timing


@pytest.fixture
def sandbox(voicegenie_sandbox):
    voicegenie_sandbox.add_campaign(id="long", total_count=10_000, status="scheduled")
    return voicegenie_sandbox


@pytest.mark.parametrize(
    ("now", "by_number", "was_ended_by_user", "is_cleared"),
    [
        # The same try, whatever was cleared in its run.
        ((2, 0, 1), True, False, False),
        ((2, 1, 1), True, False, False),
        # A retry, also if the author has lowered `retries` meanwhile, or a user has marked the task before.
        ((2, 0, 2), False, False, False),
        ((2, 0, 2), True, False, False),
        ((2, 0, 2), False, True, False),
        # A retry after the clear of another task.
        ((2, 1, 2), False, False, False),
        # Cleared.
        ((3, 1, 2), True, False, True),
        # Cleared without a change of the run's state.
        ((3, 0, 2), True, False, True),
        # Cleared after `retries` was lowered by one.
        ((2, 1, 2), True, False, True),
        # Cleared while it ran, together with others: Airflow 3.3 has lost the raised number.
        ((2, 1, 2), False, True, True),
    ],
)
def test_which_try_begins_a_generation(now, by_number, was_ended_by_user, is_cleared):
    then = Generation(max_tries=2, clear_number=0, try_number=1)
    assert (
        was_cleared(then, Generation(*now), is_first_try=by_number, was_ended_by_user=was_ended_by_user) is is_cleared
    )


@pytest.mark.parametrize(
    ("try_number", "max_tries", "is_first"), [(1, 2, True), (2, 2, False), (3, 2, False), (2, 3, True), (3, 3, False)]
)
def test_the_first_try_of_a_generation(try_number, max_tries, is_first):
    assert is_first_try(TaskInstance(try_number=try_number, max_tries=max_tries)) is is_first
    assert is_first_try(None)


def lower_retries(run, retries):
    run["ti"].task.retries = retries
    return run


#: A later try of a task that was cleared, or was not.
LATER = {
    "a retry": (lambda store: context(store, try_number=2), 1),
    "a retry after the clear of another task": (lambda store: context(store, try_number=2, clear_number=1), 1),
    "a retry with lowered retries": (lambda store: lower_retries(context(store, try_number=2), 1), 1),
    "cleared": (lambda store: context(store, try_number=2, max_tries=3, clear_number=1), 2),
    "cleared with lowered retries": (lambda store: lower_retries(context(store, try_number=2, clear_number=1), 1), 2),
    "cleared with others": (lambda store: context(store, try_number=2, clear_number=1, was_ended_by_user=True), 2),
    # Airflow 3.4 has deleted what was kept.
    "cleared with its state": (lambda store: context(Store(), try_number=2, max_tries=3, clear_number=1), 2),
}


@pytest.mark.parametrize("later", LATER)
def test_a_campaign_is_started_once_in_each_generation(sandbox, later):
    store = Store()
    in_worker(Starting(wait_for_completion=False), context(store))
    change(sandbox, "long", status="paused")()
    again, starts = LATER[later]
    assert in_worker(Starting(wait_for_completion=False), again(store))["started_by_task"]
    assert sandbox.start_count("long") == starts


def test_a_retry_in_the_generation_that_began_with_a_lost_number_takes_over_its_start(sandbox):
    store = Store()
    make = Starting(wait_for_completion=False)
    in_worker(make, context(store))
    change(sandbox, "long", status="paused")()
    in_worker(make, context(store, try_number=2, clear_number=1, was_ended_by_user=True))
    change(sandbox, "long", status="paused")()
    assert in_worker(make, context(store, try_number=3, clear_number=1))["started_by_task"]
    assert sandbox.start_count("long") == 2


def test_a_task_that_is_cleared_so_that_it_takes_another_campaign_waits_for_the_pause_of_the_first(sandbox):
    store = Store()
    with pytest.raises(TaskDeferred):
        Starting()(deferrable=True).execute(context(store))
    asked = sandbox.request_count("get", "long")
    other = sandbox.add_campaign(total_count=10_000, status="scheduled").id

    with (
        meanwhile(lambda: sandbox.request_count("get", "long") >= asked + 2, change(sandbox, "long", status="paused")),
        pytest.raises(TaskDeferred) as deferral,
    ):
        Starting(campaign_id=other)(deferrable=True).execute(context(store, try_number=2, max_tries=3, clear_number=1))
    assert (sandbox.status("long"), sandbox.start_count("long"), sandbox.start_count(other)) == ("paused", 1, 1)
    assert deferral.value.trigger.generation == [3, 1, 2]
    sent = [(each.operation, each.campaign_id) for each in sandbox.sandbox.requests]
    assert ("get", other) not in sent[: sent.index(("start", "long"))]


def test_the_first_campaign_of_a_cleared_task_that_goes_on_is_an_error_in_the_log(sandbox, monkeypatch, caplog):
    monkeypatch.setattr(timing, "pause_after_clear", 0.0)
    store = Store()
    with pytest.raises(TaskDeferred):
        Starting()(deferrable=True).execute(context(store))
    other = sandbox.add_campaign(total_count=10_000, status="scheduled").id
    with pytest.raises(TaskDeferred):
        Starting(campaign_id=other)(deferrable=True).execute(context(store, try_number=2, max_tries=3))
    assert sandbox.start_count(other) == 1
    assert "Campaign 'long': this task started it before it was cleared" in caplog.text


def test_the_trigger_of_a_retry_belongs_to_the_generation_of_its_start(sandbox):
    store = Store()
    for run in (context(store), context(store, try_number=2, clear_number=1)):
        with pytest.raises(TaskDeferred) as deferral:
            Starting()(deferrable=True).execute(run)
        assert deferral.value.trigger.generation == [2, 0, 1]
        assert run["ti"].xcom["voicegenie_task"]["generation"] == [2, 0, 1]
