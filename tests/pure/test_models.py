# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import pickle
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_voicegenie.api.models import (
    Campaign,
    CampaignPage,
    CampaignStats,
    CampaignStatus,
    PausedCampaign,
    ShapeError,
    StartedCampaign,
    read_time,
    write_time,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("running", CampaignStatus.RUNNING),
        ("in_progress", CampaignStatus.RUNNING),
        ("In-Progress", CampaignStatus.RUNNING),
        ("not_yet_started", CampaignStatus.NOT_YET_STARTED),
        (" paused ", CampaignStatus.PAUSED),
        ("INPROGRESS", CampaignStatus.RUNNING),
        ("Not Yet Started", CampaignStatus.NOT_YET_STARTED),
        ("notyet-started", CampaignStatus.NOT_YET_STARTED),
        ("com pleted", CampaignStatus.COMPLETED),
        ("Active", CampaignStatus.RUNNING),
        ("Pending", CampaignStatus.NOT_YET_STARTED),
        ("PENDING", CampaignStatus.NOT_YET_STARTED),
        ("not started yet", CampaignStatus.NOT_YET_STARTED),
        ("In Progress", CampaignStatus.RUNNING),
        ("Completed", CampaignStatus.COMPLETED),
        ("archived", CampaignStatus.UNKNOWN),
        ("cancelled", CampaignStatus.UNKNOWN),
        ("", CampaignStatus.UNKNOWN),
    ],
)
def test_status_words(word, status):
    assert CampaignStatus.read(word) is status


def test_status_groups_do_not_overlap():
    for status in CampaignStatus:
        assert status.is_running + status.is_startable + status.has_ended <= 1
    assert {status for status in CampaignStatus if status.is_startable} == {
        "paused",
        "scheduled",
        "not-yet-started",
    }
    assert {status for status in CampaignStatus if status.has_ended} == {"completed", "stopped", "failed"}


def test_campaign_counts_contacts_and_drops_their_ids():
    campaign = Campaign.from_json({"id": "c", "campaign_status": "draft", "contact_ids": ["person-1", "person-2"]})
    assert campaign.total_count == 2
    assert "person-1" not in repr(campaign)
    total = Campaign.from_json({"id": "c", "campaign_status": "x", "contact_ids": ["1"], "total_count": 150})
    assert total.total_count == 150


@pytest.mark.parametrize(
    "value", [-1, 1.5, True, None, [], float("nan"), "", "-1", "1.5", "nan", "1_000", "0x10", "five", "٣"]
)
def test_what_is_no_count_is_none(value):
    assert Campaign.from_json({"id": "c", "campaign_status": "x", "completed_count": value}).completed_count is None


@pytest.mark.parametrize(
    "data", [{}, {"id": "c"}, {"id": 1, "campaign_status": "paused"}, {"id": "c", "campaign_status": None}]
)
def test_campaign_needs_id_and_status(data):
    with pytest.raises(ShapeError):
        Campaign.from_json(data)


def test_page_skips_what_it_cannot_read_but_counts_it():
    page = CampaignPage.from_json(
        {"campaigns": [{"id": "a", "campaign_status": "paused"}, {"id": 5}, None], "pagination": {"total": 9}}
    )
    assert [campaign.campaign_id for campaign in page.campaigns] == ["a"]
    assert (page.size, page.total) == (3, 9)


@pytest.mark.parametrize("status", ["paused", "scheduled", "draft", "failed", "stopped"])
def test_a_start_does_not_lead_to_these(status):
    with pytest.raises(ShapeError):
        StartedCampaign.from_json({"campaign_id": "c", "status": status})


@pytest.mark.parametrize("status", ["running", "in_progress", "active", "pending", "completed", "queued"])
def test_a_start_may_lead_to_these(status):
    assert StartedCampaign.from_json({"campaign_id": "c", "status": status}).status_text == status


def test_a_pause_does_not_lead_to_running():
    with pytest.raises(ShapeError):
        PausedCampaign.from_json({"campaign_id": "c", "status": "in_progress"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-16T10:30:00Z", datetime(2024, 1, 16, 10, 30, tzinfo=UTC)),
        ("2024-01-16T12:30:00+02:00", datetime(2024, 1, 16, 10, 30, tzinfo=UTC)),
        ("2024-01-16T10:30:00", datetime(2024, 1, 16, 10, 30, tzinfo=UTC)),
        ("2024-01-16T10:30:00.123456789Z", datetime(2024, 1, 16, 10, 30, 0, 123456, tzinfo=UTC)),
        ("2024-01-16 10:30:00+0000", datetime(2024, 1, 16, 10, 30, tzinfo=UTC)),
        ("20240116T103000Z", datetime(2024, 1, 16, 10, 30, tzinfo=UTC)),
        ("2024-01-16T10.30Z", None),
        ("2024-01-16T10:30.5Z", None),
        ("2024-01-16T10:30:00,5Z", None),
        ("2024-01-16T10:30+02.5", None),
        ("2024-01-16+02:00", None),
        ("2024-01-16", None),
        ("2024-01-17:00:00Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        (None, None),
        (1700000000, None),
    ],
)
def test_times(text, expected):
    assert read_time(text) == expected


def test_times_are_written_as_the_service_does():
    assert write_time(datetime(2024, 1, 16, 10, 30, tzinfo=UTC)) == "2024-01-16T10:30:00Z"
    assert write_time(None) is None


def test_numbers_are_read_from_texts_too():
    campaign = Campaign.from_json({"id": "c", "campaign_status": "x", "total_count": "12", "completed_count": " 3 "})
    assert (campaign.total_count, campaign.completed_count) == (12, 3)
    counters = ("total_contacts", "calls_completed", "calls_failed", "calls_in_progress", "calls_pending")
    numbers = {"success_rate": "83.33", "average_call_duration": "245", "total_call_duration": "300.0"}
    stats = CampaignStats.from_json({"campaign_id": "c", **dict.fromkeys(counters, "5"), **numbers})
    assert (stats.calls_pending, stats.success_rate, stats.total_call_duration) == (5, 83.33, 300)
    assert CampaignPage.from_json({"campaigns": [], "pagination": {"total": "7"}}).total == 7


TIME = "2024-01-16T10:30:00Z"
#: One object of each class, with what its `to_json` comes to where that is not what it was read from.
RESULTS = [
    (
        Campaign.from_json(
            {"id": "c", "campaign_status": "In Progress", "total_count": 3, "failed_count": 1, "updated_at": TIME}
        ),
        {"campaign_id": "c", "status": "running", "status_text": "In Progress", "total_count": 3, "updated_at": TIME},
    ),
    (
        CampaignPage.from_json({"campaigns": [{"id": "a", "campaign_status": "paused"}], "pagination": {"total": 9}}),
        {"size": 1, "total": 9},
    ),
    (
        CampaignStats.from_json(
            {
                "campaign_id": "c",
                **dict.fromkeys(("total_contacts", "calls_completed", "calls_failed"), 4),
                **dict.fromkeys(("calls_in_progress", "calls_pending"), 0),
                "call_status_breakdown": {"answered": 4, "busy": None},
                "completed_at": TIME,
            }
        ),
        {"call_status_breakdown": {"answered": 4}, "completed_at": TIME, "success_rate": None, "is_final": True},
    ),
    (
        StartedCampaign.from_json({"campaign_id": "c", "status": "running", "started_at": TIME}),
        {"campaign_id": "c", "status": "running", "status_text": "running", "started_at": TIME},
    ),
    (
        PausedCampaign.from_json({"campaign_id": "c", "status": "paused", "paused_at": TIME, "active_calls": 2}),
        {"campaign_id": "c", "status": "paused", "status_text": "paused", "paused_at": TIME, "active_calls": 2},
    ),
]


@pytest.mark.parametrize(("result", "fields"), RESULTS, ids=lambda value: type(value).__name__)
def test_results_can_travel(result, fields):
    assert type(result) in MODELS
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(result, protocol)) == result
    assert copy.deepcopy(result) == copy.copy(result) == result
    data = result.to_json()
    assert json.loads(json.dumps(data)) == data
    assert list(data) == [field.name for field in dataclasses.fields(result)]
    assert data == {**data, **fields}
    assert list(dataclasses.asdict(result)) == list(data)


def test_a_page_in_json_has_its_campaigns():
    (campaign,) = RESULTS[1][0].to_json()["campaigns"]
    assert (campaign["campaign_id"], campaign["status"]) == ("a", "paused")


FIELDS = [
    "id",
    "campaign_id",
    "campaign_status",
    "status",
    "total_count",
    "campaigns",
    "pagination",
    "created_at",
    "call_status_breakdown",
]
MODELS = [Campaign, CampaignPage, CampaignStats, StartedCampaign, PausedCampaign]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_any_json_is_read_or_refused(data):
    for model in MODELS:
        with contextlib.suppress(ShapeError):
            model.from_json(data)


@pytest.mark.parametrize("value", [1e308, 10**308, 2**53, "9" * 300])
def test_a_count_that_no_division_could_take_is_none(value):
    assert Campaign.from_json({"id": "c", "campaign_status": "x", "total_count": value}).total_count is None


def test_a_campaign_whose_id_has_half_a_character_hides_no_other():
    items = [{"id": name, "campaign_status": "x"} for name in ("a", "\ud83d", "b\udc00", "é")]
    page = CampaignPage.from_json({"campaigns": items, "pagination": {"total": 4}})
    assert ([campaign.campaign_id for campaign in page.campaigns], page.size) == (["a", "é"], 4)
