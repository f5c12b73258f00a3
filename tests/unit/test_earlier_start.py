# SPDX-License-Identifier: Apache-2.0
"""What a later try makes of the record of a start."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from helpers.tasks import Following, Starting, Store, change, context

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, write_time
from airflow_provider_voicegenie.memory import Generation, Memory
from airflow_provider_voicegenie.start.record import OwnStart, StartPhase, StartRecord

FIRST = Generation(max_tries=2, clear_number=0, try_number=1)
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def own_start(run, campaign_id, conn_id):
    task, hook = SimpleNamespace(campaign_id=campaign_id), SimpleNamespace(voicegenie_conn_id=conn_id)
    return OwnStart(task, run, hook, Memory(run))


def test_a_record_of_a_start_keeps_what_is_known():
    before = Campaign("c", CampaignStatus.PAUSED, "paused", completed_count=1, failed_count=2, updated_at=NOW)
    record = StartRecord.of(before, "c", "vg", FIRST, NOW)
    assert (record.phase, record.sent_at, record.started_at) == (StartPhase.SENT, write_time(NOW), None)
    started = record.in_phase(StartPhase.STARTED, NOW)
    assert started.in_phase(StartPhase.TIMED_OUT).started_at == started.started_at == write_time(NOW)
    again = StartRecord.of_document(json.loads(json.dumps(started.to_document())))
    assert again == started
    assert again.campaign_before() == before


@pytest.mark.parametrize(
    ("phase", "campaign_id", "max_tries", "found", "awaits_pause"),
    [
        (StartPhase.SENT, "c", 2, True, False),
        (StartPhase.STARTED, "c", 2, True, False),
        (StartPhase.TIMED_OUT, "c", 2, True, False),
        (StartPhase.CLOSED, "c", 2, False, False),
        (StartPhase.SENT, "c", 3, False, True),
        (StartPhase.STARTED, "c", 3, False, True),
        (StartPhase.TIMED_OUT, "c", 3, False, False),
        (StartPhase.CLOSED, "c", 3, False, False),
        # Whether it is about the same campaign is for the task to see: one that is not is never a start to be made.
        (StartPhase.STARTED, "d", 2, True, False),
        (StartPhase.STARTED, "d", 3, False, True),
    ],
)
def test_which_record_counts_for_a_try(phase, campaign_id, max_tries, found, awaits_pause):
    before = Campaign("c", CampaignStatus.PAUSED, "paused")
    for must_pause_on_kill in (False, True):
        record = StartRecord.of(before, "c", "vg", FIRST, NOW).in_phase(phase, must_pause_on_kill=must_pause_on_kill)
        run = context(Store(voicegenie_task=record.to_document()), try_number=2, max_tries=max_tries)
        records = own_start(run, campaign_id, "vg")
        assert records.recall() == (record if found else None)
        assert records.awaits_pause is awaits_pause
        assert records.cleared == (record if awaits_pause else None)
        assert records.owed == (record if must_pause_on_kill else None)
        assert records.memory.generation == (FIRST if max_tries == 2 else (max_tries, 0, 2))


def test_a_later_process_of_a_cleared_try_need_not_see_the_clear():
    """Airflow gives the signs of a clear to the first process of a try only."""
    record = StartRecord.of(Campaign("c", CampaignStatus.PAUSED, "paused"), "c", "vg", FIRST, NOW)
    store = Store(voicegenie_task=record.in_phase(StartPhase.STARTED).to_document())
    for was_ended_by_user in (True, False):
        run = context(store, try_number=2, clear_number=1, was_ended_by_user=was_ended_by_user)
        records = own_start(run, "c", "vg")
        assert records.recall() is None
        assert records.awaits_pause is was_ended_by_user
        assert records.memory.generation == (2, 1, 2)


@pytest.mark.parametrize(("try_number", "max_tries", "awaits_pause"), [(1, 2, False), (2, 2, False), (2, 3, True)])
def test_without_a_record_a_pause_may_come_if_a_user_cleared_the_task(try_number, max_tries, awaits_pause):
    """Airflow 3.4 deletes the record with the clear."""
    records = own_start(context(Store(), try_number=try_number, max_tries=max_tries), "c", "vg")
    assert records.recall() is None
    assert records.awaits_pause is awaits_pause


RECORD = StartRecord.of(Campaign("c", CampaignStatus.PAUSED, "paused"), "c", "vg", FIRST, NOW).to_document()


def with_start(document, **changes):
    return {**document, "start": {**document["start"], **changes}}


@pytest.mark.parametrize(
    "data",
    [None, {}, [], "x", {"campaign_id": "c"}, {"start": {}}, RECORD | {"generation": 3}, RECORD | {"start": None}],
)
def test_what_is_no_record_is_none(data):
    assert StartRecord.of_document(data) is None
    records = own_start(context(Store(voicegenie_task=data)), "c", "vg")
    assert records.recall() is None
    assert not records.awaits_pause
    # What this version cannot read is not taken for nothing.
    assert records.keeps_records is (data is None)


def record_json(**changed):
    before = Campaign("long", CampaignStatus.PAUSED, "paused", completed_count=1, failed_count=2, updated_at=NOW)
    record = StartRecord.of(before, "long", "voicegenie_default", Generation(2, 0, 1), NOW).in_phase(StartPhase.STARTED)
    return with_start(record.to_document(), **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"of_a_later_version": 1},
        {"phase": "resting"},
        {"phase": None},
        {"before": None},
        {"before": {}},
        {"before": {**record_json()["start"]["before"], "status_text": None}},
        {"before": {**record_json()["start"]["before"], "status_text": 5}},
    ],
    ids=str,
)
def test_a_record_of_another_format_breaks_no_try(sandbox, changed):
    data = record_json(**changed)
    assert StartRecord.of_document(record_json()) is not None
    assert StartRecord.of_document(data) is None
    store = Store(voicegenie_task=data)
    result = Starting(wait_for_completion=False)(deferrable=False).execute(context(store, try_number=2))
    assert result["started_by_task"]
    assert store["voicegenie_task"]["start"]["phase"] == "started"


def test_a_start_whose_record_is_not_readable_is_found_by_the_services_evidence(sandbox):
    store = Store()
    operator = Starting(wait_for_completion=False)(deferrable=False)
    operator.execute(context(store))
    change(sandbox, "long", status="paused")()
    store["voicegenie_task"]["start"]["of_a_later_version"] = 1
    assert operator.execute(context(store, try_number=2))["started_by_task"]
    assert (sandbox.start_count("long"), sandbox.status("long")) == (1, "paused")


@pytest.mark.parametrize(
    "kept", ["text", [1], 5, {"campaign_id": "another"}, {"generation": 1}, {"generation": [0, 0, 1]}]
)
def test_what_a_task_kept_in_another_format_breaks_no_try(sandbox, kept):
    change(sandbox, "followed", status="completed")()
    store = Store(voicegenie_task=kept)
    result = Following(timeout=60)(deferrable=False).poke(context(store, try_number=2))
    assert result.is_done
    assert store["voicegenie_task"]["campaign_id"] == "followed"


# What is owed.


def owed_record(campaign_id="c", conn_id="vg", phase=StartPhase.CLOSED):
    before = Campaign(campaign_id, CampaignStatus.PAUSED, "paused")
    return StartRecord.of(before, campaign_id, conn_id, Generation(3, 0, 1), NOW).in_phase(
        phase, NOW, must_pause_on_kill=True
    )


@pytest.mark.parametrize(
    ("campaign_id", "conn_id", "still_owed"), [("c", "vg", True), ("d", "vg", False), ("c", "other", False)]
)
def test_a_new_start_takes_over_what_is_owed_to_the_same_campaign(campaign_id, conn_id, still_owed):
    store = Store(voicegenie_task=owed_record().to_document())
    records = own_start(context(store, max_tries=4), campaign_id, conn_id)
    assert records.recall() is None
    records.add_record(Campaign(campaign_id, CampaignStatus.PAUSED, "paused"), NOW)
    start = store["voicegenie_task"]["start"]
    assert (start["phase"], start["must_pause_on_kill"]) == ("sent", still_owed)
    assert store["voicegenie_task"]["generation"][0] == 4


@pytest.mark.parametrize("owes", [True, False, None])
def test_what_is_owed_follows_the_record(owes):
    store = Store(voicegenie_task=owed_record().to_document())
    records = own_start(context(store, max_tries=4), "c", "vg")
    records.recall()
    # No start of this generation: what is set is what was owed.
    records.set_phase(StartPhase.CLOSED, must_pause_on_kill=owes)
    assert store["voicegenie_task"]["start"]["must_pause_on_kill"] is (owes is not False)
    assert (records.owed is None) is (owes is False)


def test_a_phase_without_a_record_writes_nothing():
    store = Store()
    records = own_start(context(store), "c", "vg")
    records.set_phase(StartPhase.CLOSED)
    assert not store
    assert records.memory.document is None
