# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from types import SimpleNamespace

import pytest

from airflow_provider_voicegenie.api.models import Campaign, CampaignStats
from airflow_provider_voicegenie.rules.calling_hours import CallingHours
from airflow_provider_voicegenie.rules.outcomes import Condition
from airflow_provider_voicegenie.rules.parameters import NOT_GIVEN, read_seconds
from airflow_provider_voicegenie.start.evidence import (
    TookEffect,
    has_started_itself,
    took_effect_by_statistics,
    took_effect_by_status,
    was_started_in_run,
)
from airflow_provider_voicegenie.start.guards import check_backfill, check_calling_hours, check_campaign, check_run

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
    run = SimpleNamespace(run_type=run_type, run_after=due)
    task = SimpleNamespace(start_in_backfill=start_in_backfill, max_lateness=max_lateness)
    finding = check_run(task, {"dag_run": run}, NOW)
    assert (finding and finding.condition) == expected


def test_the_run_is_read_on_both_airflow_majors():
    three = SimpleNamespace(run_type=SimpleNamespace(value="scheduled"), run_after=NOW, data_interval_end=None)
    two = SimpleNamespace(run_type="scheduled", data_interval_end=NOW)
    task = SimpleNamespace(start_in_backfill=False, max_lateness=5)
    for dag_run in (three, two):
        assert check_run(task, {"dag_run": dag_run}, NOW + timedelta(seconds=5)) is None
        finding = check_run(task, {"dag_run": dag_run}, NOW + timedelta(seconds=6))
        assert finding.condition is Condition.RUN_TOO_LATE


def event_of(run_type, *, has_run=True, name=None):
    """Return an asset event as Airflow shows it to a task that it triggered."""
    event = SimpleNamespace(source_run_id=f"{name or run_type}__2026-01-01T00:00:00+00:00")
    if has_run:
        event.source_dag_run = SimpleNamespace(run_type=SimpleNamespace(value=run_type))
    return event


def from_outside():
    return SimpleNamespace(source_run_id=None, source_dag_run=None)


#: Events that trigger a run -> whether backfills, and nothing else, have triggered it.
TRIGGERS = {
    "a backfill": ([event_of("backfill")], True),
    "two backfills": ([event_of("backfill"), event_of("backfill")], True),
    "a schedule": ([event_of("scheduled")], False),
    "a backfill and a schedule": ([event_of("backfill"), event_of("scheduled")], False),
    "a backfill and someone outside of Airflow": ([event_of("backfill"), from_outside()], False),
    "someone outside of Airflow": ([from_outside()], False),
    "nothing that is known": ([], False),
    # A backfill may run what a schedule made once more, under the old name.
    "a backfill of a run of the schedule": ([event_of("backfill", name="scheduled")], True),
    "a run of the schedule with another name": ([event_of("scheduled", name="backfill")], False),
    "a backfill, by its name": ([event_of("backfill", has_run=False)], True),
    "a schedule, by its name": ([event_of("scheduled", has_run=False)], False),
}


@pytest.mark.parametrize("major", [2, 3])
@pytest.mark.parametrize("name", TRIGGERS)
def test_a_run_that_only_backfills_have_triggered(name, major):
    events, expected = TRIGGERS[name]
    word, key = (
        ("asset_triggered", "triggering_asset_events")
        if major == 3
        else ("dataset_triggered", "triggering_dataset_events")
    )
    context = {"dag_run": SimpleNamespace(run_type=word, run_after=NOW), key: {"first": events[:1], "rest": events[1:]}}
    for start_in_backfill in (False, True):
        task = SimpleNamespace(start_in_backfill=start_in_backfill, max_lateness=None)
        finding = check_run(task, context, NOW)
        is_refused = expected and not start_in_backfill
        assert (finding and finding.condition) == (Condition.BACKFILL_RUN if is_refused else None)


def test_events_of_a_run_that_assets_did_not_trigger_say_nothing():
    run = SimpleNamespace(run_type="manual", run_after=NOW)
    context = {"dag_run": run, "triggering_asset_events": {"a": [event_of("backfill")]}}
    assert check_backfill(context, "phone nobody", "start_in_backfill") is None


class AsksTheDatabase(dict):
    """A context as Airflow 2 makes it: some of its values are read when they are asked for."""

    def get(self, key, default=None):
        assert not key.startswith("triggering"), "Airflow asks its database, which fails in other runs"
        return super().get(key, default)


@pytest.mark.parametrize("run_type", ["manual", "scheduled", "backfill"])
def test_events_are_not_asked_for_in_other_runs(run_type):
    context = AsksTheDatabase(dag_run=SimpleNamespace(run_type=run_type, run_after=NOW))
    check_backfill(context, "phone nobody", "start_in_backfill")


def test_a_run_that_is_gone_is_known_by_its_name():
    class Gone(SimpleNamespace):
        @property
        def source_dag_run(self):
            raise LookupError("no such run")

    run = SimpleNamespace(run_type="asset_triggered", run_after=NOW)
    for name, expected in (("backfill__x", True), ("scheduled__x", False)):
        context = {"dag_run": run, "triggering_asset_events": {"a": [Gone(source_run_id=name)]}}
        assert (check_backfill(context, "phone nobody", "start_in_backfill") is not None) is expected


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
    finding = check_campaign(SimpleNamespace(max_contacts=NOT_GIVEN), campaign(status))
    assert (finding and finding.condition) == expected


def test_the_calling_hours():
    hours = [CallingHours("09:00", "12:00", "UTC")]
    assert check_calling_hours(hours, NOW).condition is Condition.OUTSIDE_CALLING_HOURS
    assert check_calling_hours(hours, NOW - timedelta(seconds=1)) is None
    assert check_calling_hours([], NOW) is None


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
        (campaign("scheduled"), [campaign("running")], TookEffect.YES),
        (campaign("paused"), [campaign("in_progress")], TookEffect.YES),
        (campaign("paused"), [campaign("paused"), campaign("running")], TookEffect.YES),
        (campaign("scheduled"), [campaign("completed")], TookEffect.YES),
        (campaign("scheduled"), [campaign("paused")], TookEffect.YES),
        (campaign("scheduled", completed_count=0), [campaign("scheduled", completed_count=1)], TookEffect.YES),
        (campaign("scheduled", failed_count=0), [campaign("scheduled", failed_count=1)], TookEffect.YES),
        # Calls that were going on when it was paused go on to their end.
        (campaign("paused", completed_count=3), [campaign("paused", completed_count=4)], TookEffect.UNKNOWN),
        (campaign("paused", failed_count=3), [campaign("paused", failed_count=4)], TookEffect.UNKNOWN),
        (campaign("scheduled"), [campaign("scheduled")], TookEffect.NO),
        (campaign("paused", updated_at=T1), [campaign("paused", updated_at=T1)], TookEffect.NO),
        (campaign("paused", updated_at=T1), [campaign("paused", updated_at=T2)], TookEffect.UNKNOWN),
        # Where every look has another time, the time says nothing.
        (
            campaign("paused", updated_at=T1),
            [campaign("paused", updated_at=T2), campaign("paused", updated_at=T3)],
            TookEffect.NO,
        ),
        (campaign("scheduled", updated_at=T1), [campaign("scheduled", updated_at=T2)], TookEffect.NO),
        (campaign("scheduled"), [campaign("stopped")], TookEffect.UNKNOWN),
        (campaign("scheduled"), [campaign("failed")], TookEffect.UNKNOWN),
        (campaign("scheduled"), [campaign("archived")], TookEffect.UNKNOWN),
        # Words that we do not know prove nothing.
        (campaign("queued"), [campaign("dialing")], TookEffect.UNKNOWN),
        (campaign("queued"), [campaign("queued")], TookEffect.UNKNOWN),
        (campaign("queued"), [campaign("running")], TookEffect.UNKNOWN),
        (campaign("queued"), [campaign("paused")], TookEffect.UNKNOWN),
        (campaign("scheduled"), [campaign("dialing"), campaign("scheduled")], TookEffect.UNKNOWN),
        (campaign("paused"), [campaign("scheduled"), campaign("paused")], TookEffect.UNKNOWN),
    ],
)
def test_what_became_of_a_start(before, looks, expected):
    assert took_effect_by_status(before, looks) is expected


YES, NO, UNKNOWN = TookEffect.YES, TookEffect.NO, TookEffect.UNKNOWN


@pytest.mark.parametrize(
    ("started_at", "judged", "expected", "with_unknown_clock"),
    [
        ("2026-11-23T12:00:01Z", NO, YES, YES),
        ("2026-11-23T11:59:58Z", UNKNOWN, YES, YES),
        ("2026-11-23T12:00:41Z", NO, YES, YES),
        ("2026-11-23T11:59:57Z", NO, NO, UNKNOWN),
        ("2026-11-23T11:59:57Z", UNKNOWN, UNKNOWN, UNKNOWN),
        ("1970-01-01T00:00:00Z", NO, NO, UNKNOWN),
        # A little after now may be the clocks; later than that is a plan.
        ("2026-11-23T12:00:43Z", NO, UNKNOWN, UNKNOWN),
        ("2026-11-23T12:02:40Z", NO, UNKNOWN, UNKNOWN),
        ("2026-11-23T12:02:41Z", NO, NO, NO),
        ("2026-11-24T12:00:00Z", NO, NO, NO),
        ("2026-11-24T12:00:00Z", UNKNOWN, UNKNOWN, UNKNOWN),
        (None, NO, NO, NO),
        (None, UNKNOWN, UNKNOWN, UNKNOWN),
        (None, YES, YES, YES),
    ],
)
def test_what_the_statistics_add(started_at, judged, expected, with_unknown_clock):
    read = NOW + timedelta(seconds=40)
    for is_clock_known, wanted in ((True, expected), (False, with_unknown_clock)):
        found = took_effect_by_statistics(judged, stats(started_at), NOW, read, is_clock_known=is_clock_known)
        assert found is wanted


@pytest.mark.parametrize(("judged", "expected"), [(YES, YES), (NO, UNKNOWN), (UNKNOWN, UNKNOWN)])
def test_without_statistics_nothing_shows_that_a_start_did_not_take_effect(judged, expected):
    assert took_effect_by_statistics(judged, None, NOW, NOW, is_clock_known=True) is expected


def stats(started_at):
    names = ["total_contacts", "calls_completed", "calls_failed", "calls_in_progress", "calls_pending"]
    counts = dict.fromkeys(names, 0)
    return CampaignStats.from_json({"campaign_id": "c", "started_at": started_at, **counts})


@pytest.mark.parametrize(
    ("status", "started_at", "expected", "with_unknown_clock"),
    [
        ("running", "2026-11-23T12:00:00Z", YES, YES),
        ("paused", "2026-11-23T11:58:00Z", YES, YES),
        ("scheduled", "2026-11-23T12:00:00Z", YES, YES),
        ("paused", "2026-11-23T11:57:59Z", NO, UNKNOWN),
        ("running", "2026-11-23T11:57:59Z", NO, UNKNOWN),
        # A plan is no start.
        ("paused", "2026-11-24T12:00:00Z", NO, NO),
        ("scheduled", "2026-11-24T12:00:00Z", NO, NO),
        ("scheduled", "2026-11-23T13:01:00Z", NO, NO),
        ("running", "2026-11-24T12:00:00Z", UNKNOWN, UNKNOWN),
        ("dialing", "2026-11-24T12:00:00Z", UNKNOWN, UNKNOWN),
        ("scheduled", None, NO, NO),
        ("paused", None, NO, NO),
        ("running", None, UNKNOWN, UNKNOWN),
        ("dialing", None, UNKNOWN, UNKNOWN),
    ],
)
def test_what_statistics_show_if_nothing_is_kept_across_tries(status, started_at, expected, with_unknown_clock):
    read = NOW + timedelta(hours=1)
    for is_clock_known, wanted in ((True, expected), (False, with_unknown_clock)):
        found = was_started_in_run(campaign(status), stats(started_at), NOW, read, is_clock_known=is_clock_known)
        assert found is wanted


def statistics_of(started_at):
    names = ["total_contacts", "calls_completed", "calls_failed", "calls_in_progress", "calls_pending"]
    counts = dict.fromkeys(names, 0)
    return CampaignStats.from_json({"campaign_id": "c", "started_at": started_at and started_at.isoformat(), **counts})


@pytest.mark.parametrize("status", ["running", "paused", "completed", "pending"])
@pytest.mark.parametrize(
    ("clock", "is_outside"),
    [
        # The clocks may be two minutes apart, in both directions.
        ("08:57:59", True),
        ("08:58:00", False),
        ("09:00:00", False),
        ("16:59:59", False),
        ("17:01:59", False),
        ("17:02:00", True),
        ("23:00:00", True),
    ],
)
def test_what_started_itself(clock, is_outside, status):
    started_at = datetime.combine(NOW.date(), time.fromisoformat(clock), UTC)
    hours = [CallingHours("09:00", "17:00", "UTC")]
    statistics = statistics_of(started_at)
    assert has_started_itself(campaign(status), statistics, hours) is (is_outside and status == "running")
    assert not has_started_itself(campaign(status), statistics, [])
    assert not has_started_itself(campaign(status), statistics_of(None), hours)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # One that is pending may have been taken in, and begin later.
        (campaign("pending"), campaign("pending"), TookEffect.UNKNOWN),
        (campaign("paused"), campaign("pending"), TookEffect.UNKNOWN),
        (campaign("pending"), campaign("paused"), TookEffect.YES),
        (campaign("paused", completed_count=3, failed_count=2), campaign("paused", completed_count=3), TookEffect.NO),
        # Calls that were in progress end after a pause, too.
        (
            campaign("paused", completed_count=3),
            campaign("paused", completed_count=3, failed_count=1),
            TookEffect.UNKNOWN,
        ),
    ],
)
def test_what_a_pending_campaign_and_counters_show(before, after, expected):
    assert took_effect_by_status(before, [after]) is expected


@pytest.mark.parametrize(
    ("count", "most", "is_too_many"), [(5, 5, False), (6, 5, True), (None, 5, True), (None, None, False), (0, 0, False)]
)
def test_how_many_people_are_too_many(count, most, is_too_many):
    task = SimpleNamespace(max_contacts=NOT_GIVEN if most is None else most)
    finding = check_campaign(task, replace(campaign("paused"), total_count=count))
    assert (finding is not None) is is_too_many


def test_a_run_was_due_when_airflow_says_so_and_only_else_at_the_end_of_its_data():
    both = SimpleNamespace(run_type="scheduled", run_after=NOW, data_interval_end=NOW - timedelta(days=1))
    data = SimpleNamespace(run_type="scheduled", data_interval_end=NOW)
    task = SimpleNamespace(start_in_backfill=False, max_lateness=0)
    for run in (both, data):
        assert check_run(task, {"dag_run": run}, NOW) is None
        assert check_run(task, {"dag_run": run}, NOW + timedelta(seconds=1)).condition is Condition.RUN_TOO_LATE
