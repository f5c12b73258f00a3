# SPDX-License-Identifier: Apache-2.0
"""What a task instance remembers: one document, across tries and deferrals, until a user clears it."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from helpers.tasks import Following, Starting, Store, complete, context, event_of

from airflow_provider_voicegenie.memory import Memory
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator

FACTS = {"campaign_id": "c", "voicegenie_conn_id": "vg"}


def keeping(*, deferrable):
    return PauseCampaignOperator(task_id="task", campaign_id="followed", keep_paused_for=60, deferrable=deferrable)


def test_a_later_try_reads_what_an_earlier_one_wrote_and_belongs_to_its_generation():
    store = Store()
    memory = Memory(context(store))
    assert memory.read() is None
    memory.write(**FACTS, until=5)
    memory.write(start=None)
    later = Memory(context(store, try_number=2, clear_number=1))
    assert later.read() == {**FACTS, "generation": [2, 0, 1], "until": 5, "start": None}
    assert later.generation == (2, 0, 1)
    later.write(until=6)
    assert store["voicegenie_task"]["generation"] == [2, 0, 1]


def test_what_an_earlier_generation_wrote_counts_as_none_and_is_not_carried_over():
    store = Store()
    Memory(context(store)).write(**FACTS, until=5)
    memory = Memory(context(store, try_number=2, max_tries=3))
    assert memory.read() is None
    assert memory.cleared["until"] == 5
    memory.write(**FACTS)
    assert store["voicegenie_task"] == {**FACTS, "generation": [3, 0, 2]}


def test_what_airflow_does_not_keep_is_known_to_this_process():
    class Broken(Store):
        def set(self, key, value):
            raise OSError("no database")

    run = context(Broken())
    memory = Memory(run)
    with pytest.raises(OSError, match="no database"):
        memory.write(**FACTS, until=5)
    memory.write_copy()
    assert Memory(run).read_copy()["until"] == 5


@pytest.mark.parametrize("store", [True, False], ids=["3.3", "before"])
def test_a_copy_is_for_the_resume_and_not_for_a_later_try(store):
    run = context(Store() if store else None)
    memory = Memory(run)
    memory.write(**FACTS)
    memory.write_copy(wait={"counters": {}})
    resumed = Memory(run)
    assert resumed.read_copy() == {**FACTS, "generation": [2, 0, 1], "wait": {"counters": {}}}
    assert Memory(run).read() == ({**FACTS, "generation": [2, 0, 1]} if store else None)
    resumed.clear()
    assert Memory(run).read() is None


@pytest.mark.parametrize("copy", [None, 5, {}, {"campaign_id": "c"}, {**FACTS, "generation": 1}])
@pytest.mark.parametrize("make", [Starting(), Following(), keeping])
def test_a_task_that_airflow_lets_forget_its_wait_says_so(sandbox, make, copy):
    """As by another version of the provider. It guesses nothing by its templates, which may give another campaign."""
    run = context(Store())
    with pytest.raises(TaskDeferred) as deferral:
        make(deferrable=True).execute(run)
    complete(sandbox, "long")()
    complete(sandbox, "followed")()
    event = {**event_of(deferral.value.trigger), "deferred": copy}
    run["ti"].xcom["voicegenie_task"] = copy
    sent = len(sandbox.sandbox.requests)
    with pytest.raises(AirflowFailException, match="Airflow has lost"):
        make(deferrable=True).resume_execution("execute_complete", {"event": event}, run)
    assert len(sandbox.sandbox.requests) == sent
