# SPDX-License-Identifier: Apache-2.0
"""What a later try makes of the record of a start."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from helpers.tasks import Store, context

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, write_time
from airflow_provider_voicegenie.start.record import StartPhase, StartRecord, StartRecords

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def test_a_record_of_a_start_keeps_what_is_known():
    before = Campaign("c", CampaignStatus.PAUSED, "paused", completed_count=1, failed_count=2, updated_at=NOW)
    record = StartRecord.of(before, "c", "vg", 3, NOW)
    assert (record.phase, record.sent_at, record.started_at) == (StartPhase.SENT, write_time(NOW), None)
    started = record.in_phase(StartPhase.STARTED, NOW)
    assert started.in_phase(StartPhase.TIMED_OUT).started_at == started.started_at == write_time(NOW)
    again = StartRecord.from_json(json.loads(json.dumps(started.to_json())))
    assert again == started
    assert again.campaign_before() == before


@pytest.mark.parametrize(
    ("phase", "campaign_id", "generation", "found", "cleared_while_deferred"),
    [
        (StartPhase.SENT, "c", 3, True, False),
        (StartPhase.STARTED, "c", 3, True, False),
        (StartPhase.TIMED_OUT, "c", 3, True, False),
        (StartPhase.CLOSED, "c", 3, False, False),
        (StartPhase.SENT, "c", 4, False, True),
        (StartPhase.STARTED, "c", 4, False, True),
        (StartPhase.TIMED_OUT, "c", 4, False, False),
        (StartPhase.CLOSED, "c", 4, False, False),
        # Whether it is about the same campaign is for the task to see: one that is not is never a start to be made.
        (StartPhase.STARTED, "d", 3, True, False),
        (StartPhase.STARTED, "d", 4, False, False),
    ],
)
def test_which_record_counts_for_a_try(phase, campaign_id, generation, found, cleared_while_deferred):
    before = Campaign("c", CampaignStatus.PAUSED, "paused")
    for owes_pause in (False, True):
        record = StartRecord.of(before, "c", "vg", 3, NOW).in_phase(phase, owes_pause=owes_pause)
        run = context(Store(voicegenie_start=record.to_json()), max_tries=generation)
        records = StartRecords(run, campaign_id, "vg")
        assert records.recall() == (record if found else None)
        assert records.was_cleared is (cleared_while_deferred and (owes_pause or phase is StartPhase.SENT))
        assert records.owed == (record if owes_pause else None)


@pytest.mark.parametrize("data", [None, {}, [], "x", {"campaign_id": "c"}, {"phase": "sent"}])
def test_what_is_no_record_is_none(data):
    assert StartRecord.from_json(data) is None
    records = StartRecords(context(Store(voicegenie_start=data)), "c", "vg")
    assert records.recall() is None
    assert not records.was_cleared
