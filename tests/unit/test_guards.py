# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from airflow_provider_voicegenie.api.models import Campaign, CampaignStats
from airflow_provider_voicegenie.decisions.calling_hours import CallingHours
from airflow_provider_voicegenie.decisions.guards import RunFacts, check_calling_hours, check_campaign, check_run
from airflow_provider_voicegenie.decisions.outcomes import Condition
from airflow_provider_voicegenie.decisions.parameters import read_seconds
from airflow_provider_voicegenie.decisions.settlement import Settlement, settle_by_stats, settle_by_status

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def campaign(status, **fields):
    return Campaign.from_json({"id": "c", "campaign_status": status, **fields})


@pytest.mark.parametrize(
    ("run_type", "late_by", "start_in_backfill", "max_lateness", "expected"),
    [
        ("backfill", 0, False, None, Condition.BACKFILL_RUN),
        ("backfill", 0, True, None, None),
        ("backfill", 99, True, 10, None),
        ("scheduled", 11, False, 10, Condition.RUN_TOO_LATE),
        ("scheduled", 10, False, 10, None),
        ("scheduled", 1e6, False, None, None),
        ("scheduled", -5, False, 0, None),
        ("manual", 1e6, False, 10, None),
        ("asset_triggered", 1e6, False, 10, None),
        ("scheduled", None, False, 10, None),
    ],
)
def test_the_run(run_type, late_by, start_in_backfill, max_lateness, expected):
    due = None if late_by is None else NOW - timedelta(seconds=late_by)
    finding = check_run(RunFacts(run_type, due), NOW, start_in_backfill=start_in_backfill, max_lateness=max_lateness)
    assert (finding and finding.condition) == expected


def test_the_run_is_read_on_both_airflow_majors():
    three = SimpleNamespace(run_type=SimpleNamespace(value="scheduled"), run_after=NOW, data_interval_end=None)
    two = SimpleNamespace(run_type="scheduled", data_interval_end=NOW)
    for dag_run in (three, two):
        assert RunFacts.of({"dag_run": dag_run}) == RunFacts("scheduled", NOW)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("running", Condition.CAMPAIGN_ALREADY_RUNNING),
        ("in_progress", Condition.CAMPAIGN_ALREADY_RUNNING),
        ("completed", Condition.CAMPAIGN_COMPLETED),
        ("stopped", Condition.CAMPAIGN_COMPLETED),
        ("failed", Condition.CAMPAIGN_COMPLETED),
        ("paused", None),
        ("scheduled", None),
        ("draft", None),
        ("archived", None),
    ],
)
def test_the_campaign(status, expected):
    finding = check_campaign(campaign(status))
    assert (finding and finding.condition) == expected


def test_the_calling_hours():
    hours = CallingHours("09:00", "12:00", "UTC")
    assert check_calling_hours(hours, NOW).condition is Condition.OUTSIDE_CALLING_HOURS
    assert check_calling_hours(hours, NOW - timedelta(seconds=1)) is None
    assert check_calling_hours(None, NOW) is None


@pytest.mark.parametrize("value", [-1, timedelta(seconds=-1), "10", None, True, float("nan"), float("inf"), [1]])
def test_wrong_durations_are_refused(value):
    with pytest.raises(ValueError, match="max_lateness"):
        read_seconds("max_lateness", value)


def test_durations_are_timedeltas_or_seconds():
    assert read_seconds("x", timedelta(minutes=2)) == 120
    assert read_seconds("x", 0) == 0
    assert read_seconds("x", 1.5) == 1.5


T1, T2, T3 = "2026-11-23T10:00:00Z", "2026-11-23T11:00:00Z", "2026-11-23T12:00:00Z"


@pytest.mark.parametrize(
    ("before", "looks", "expected"),
    [
        (campaign("scheduled"), [campaign("running")], Settlement.STARTED),
        (campaign("paused"), [campaign("in_progress")], Settlement.STARTED),
        (campaign("paused"), [campaign("paused"), campaign("running")], Settlement.STARTED),
        (campaign("scheduled"), [campaign("completed")], Settlement.STARTED),
        (campaign("scheduled"), [campaign("paused")], Settlement.STARTED),
        (campaign("paused", completed_count=3), [campaign("paused", completed_count=4)], Settlement.STARTED),
        (campaign("paused", failed_count=3), [campaign("paused", failed_count=4)], Settlement.STARTED),
        (campaign("scheduled"), [campaign("scheduled")], Settlement.NOT_STARTED),
        (campaign("paused", updated_at=T1), [campaign("paused", updated_at=T1)], Settlement.NOT_STARTED),
        (campaign("paused", updated_at=T1), [campaign("paused", updated_at=T2)], Settlement.UNKNOWN),
        # Where every look has another time, the time says nothing.
        (
            campaign("paused", updated_at=T1),
            [campaign("paused", updated_at=T2), campaign("paused", updated_at=T3)],
            Settlement.NOT_STARTED,
        ),
        (campaign("scheduled", updated_at=T1), [campaign("scheduled", updated_at=T2)], Settlement.NOT_STARTED),
        (campaign("scheduled"), [campaign("stopped")], Settlement.UNKNOWN),
        (campaign("scheduled"), [campaign("failed")], Settlement.UNKNOWN),
        (campaign("scheduled"), [campaign("archived")], Settlement.UNKNOWN),
    ],
)
def test_what_became_of_a_start(before, looks, expected):
    assert settle_by_status(before, looks) is expected


@pytest.mark.parametrize(
    ("started_at", "judged", "expected"),
    [
        ("2026-11-23T12:00:01Z", Settlement.NOT_STARTED, Settlement.STARTED),
        ("2026-11-23T11:59:58Z", Settlement.UNKNOWN, Settlement.STARTED),
        ("2026-11-23T11:59:57Z", Settlement.NOT_STARTED, Settlement.NOT_STARTED),
        ("2026-11-23T11:59:57Z", Settlement.UNKNOWN, Settlement.UNKNOWN),
        (None, Settlement.NOT_STARTED, Settlement.NOT_STARTED),
    ],
)
def test_what_the_statistics_add(started_at, judged, expected):
    names = ["total_contacts", "calls_completed", "calls_failed", "calls_in_progress", "calls_pending"]
    counts = dict.fromkeys(names, 0)
    stats = CampaignStats.from_json({"campaign_id": "c", "started_at": started_at, **counts})
    assert settle_by_stats(judged, stats, NOW) is expected
