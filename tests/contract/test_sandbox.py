# SPDX-License-Identifier: Apache-2.0
"""The sandbox itself: its progress, its contacts, calls and quota, its control endpoints, its command."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
import requests

from airflow_provider_voicegenie.sandbox.store import SandboxCampaign, SandboxStore


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def test_calls_are_made_while_it_runs_and_run_out_when_it_is_paused(clock):
    store = SandboxStore(seeds=lambda: [SandboxCampaign(id="c", total_count=100)], clock=clock)
    store.start("c")
    clock.now = 50
    progress = store.progress(store.find("c"))
    assert (progress.completed + progress.failed, progress.in_progress, progress.pending) == (20, 30, 50)
    _, _, active = store.pause("c")
    assert active == 30
    clock.now = 80
    progress = store.progress(store.find("c"))
    assert (progress.completed + progress.failed, progress.in_progress, progress.pending) == (50, 0, 50)
    clock.now = 1000
    assert store.progress(store.find("c")).pending == 50
    store.start("c")
    clock.now = 1079
    assert store.find("c").status == "running"
    clock.now = 1081
    campaign = store.find("c")
    progress = store.progress(campaign)
    assert campaign.status == "completed"
    assert campaign.start_count == 2
    assert (progress.completed, progress.failed) == (80, 20)
    assert sum(progress.breakdown.values()) == 100


def test_a_campaign_with_a_schedule_goes_on_by_itself(clock):
    campaign = SandboxCampaign(id="c", total_count=10_000, resumes_after=120)
    store = SandboxStore(speed=60, seeds=lambda: [campaign], clock=clock)
    assert store.find("c").status == "scheduled"
    store.start("c")
    store.pause("c")
    clock.now = 1.9
    assert store.find("c").status == "paused"
    clock.now = 2
    assert store.find("c").status == "running"
    assert store.find("c").start_count == 1
    clock.now = 3
    store.pause("c")
    clock.now = 4.9
    assert store.find("c").status == "paused"


def test_speed(clock):
    store = SandboxStore(speed=60, seeds=lambda: [SandboxCampaign(id="c", total_count=60)], clock=clock)
    store.start("c")
    clock.now = 1.6
    assert store.find("c").status == "completed"
    with pytest.raises(ValueError, match="speed"):
        SandboxStore(speed=0)


def test_every_documented_status_is_among_the_seeds(voicegenie_sandbox):
    statuses = {campaign.status for campaign in voicegenie_sandbox.sandbox.store.all()}
    assert statuses == {
        "running",
        "in_progress",
        "paused",
        "completed",
        "scheduled",
        "draft",
        "not-yet-started",
        "stopped",
        "failed",
    }


def send(sandbox, path, method="GET", key=None, **arguments):
    headers = {"x-api-key": sandbox.api_key if key is None else key, **arguments.pop("headers", {})}
    return requests.request(
        method, f"{sandbox.url}{path}", headers=headers, timeout=60, allow_redirects=False, **arguments
    )


def test_a_key_is_needed(voicegenie_sandbox):
    for path in ("/startCampaign/ready", "/pauseTheCampaign/running", "/campaign/ready", "/fetchCampaignData"):
        response = send(voicegenie_sandbox, path, key="wrong")
        assert (response.status_code, response.json()["error"]) == (401, "UNAUTHORIZED")
    assert voicegenie_sandbox.start_count("ready") == 0


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "offset=-1", "call_count=True", "limit=²"])
def test_the_list_refuses_what_is_outside_the_documented_ranges(voicegenie_sandbox, query):
    assert send(voicegenie_sandbox, f"/fetchCampaignData?{query}").status_code == 400


def test_documented_rates(voicegenie_sandbox):
    voicegenie_sandbox.sandbox.enforce_rate_limits = True
    codes = [send(voicegenie_sandbox, "/campaign/ready").status_code for _ in range(61)]
    assert codes == [200] * 60 + [429]
    headers = send(voicegenie_sandbox, "/campaign/ready").headers
    assert headers["X-RateLimit-Remaining"] == "0"
    assert int(headers["X-RateLimit-Reset"]) > 1_700_000_000


def upload(sandbox, campaign_id, *numbers, **arguments):
    contacts = [{"phone_number": number} for number in numbers]
    body = {"campaign_id": campaign_id, "contacts": contacts}
    return send(sandbox, "/uploadCampaignData", "POST", json=body, **arguments)


def history(sandbox, campaign_id, **filters):
    response = send(sandbox, "/getHistory", "POST", json={"campaign_id": campaign_id, **filters})
    assert response.status_code == 200, response.text
    return response.json()["data"]


def last_request(sandbox):
    return list(sandbox.sandbox.requests)[-1]


def test_an_upload_is_partial_and_skips_numbers_that_are_known(voicegenie_sandbox):
    campaign = voicegenie_sandbox.add_campaign(total_count=5)
    contacts = [
        {"phone_number": "+34600111222", "name": "Ana", "email": "ana@example.com", "custom_fields": {"visit": 1}},
        {"phone_number": "+34600111222", "name": "Ana again"},
        # Another spelling may be another number.
        {"phone_number": "34 600-111-222", "name": "Ana once more"},
        {"phone_number": "(0034) 600 111 223"},
        {"phone_number": "034600111223"},
        {"phone_number": "12"},
        {"phone_number": 34600111224},
        {"phone_number": "+34600111225", "name": 5},
        {"phone_number": "+34600111225", "custom_fields": []},
        {"name": "Nobody"},
        "+34600111226",
    ]
    body = {"campaign_id": campaign.id, "contacts": contacts}
    response = send(voicegenie_sandbox, "/uploadCampaignData", "POST", json=body)
    assert response.status_code == 200
    assert response.json()["data"] == {
        "campaign_id": campaign.id,
        "uploaded_count": 4,
        "failed_count": 6,
        "errors": [
            {"phone_number": "12", "message": "Invalid phone number: 12"},
            {"phone_number": 34600111224, "message": "Invalid phone number: 34600111224"},
            {"phone_number": "+34600111225", "message": "Invalid name of +34600111225"},
            {"phone_number": "+34600111225", "message": "Invalid custom_fields of +34600111225"},
            {"phone_number": None, "message": "Missing phone number"},
            {"phone_number": None, "message": "A contact must be an object"},
        ],
    }
    numbers = ["+34600111222", "34 600-111-222", "(0034) 600 111 223", "034600111223"]
    assert voicegenie_sandbox.uploaded(campaign.id) == numbers
    assert send(voicegenie_sandbox, f"/campaign/{campaign.id}").json()["data"]["total_count"] == 9
    again = upload(voicegenie_sandbox, campaign.id, *numbers, "+34600111229").json()["data"]
    assert (again["uploaded_count"], again["failed_count"], again["errors"]) == (1, 0, [])
    assert voicegenie_sandbox.uploaded("ready") == []


def test_an_upload_took_effect_if_it_brought_somebody(voicegenie_sandbox):
    effects = []
    for campaign_id, number in (("ready", "+34600111222"), ("ready", "+34600111222"), ("nobody", "+34600111222")):
        upload(voicegenie_sandbox, campaign_id, number)
        request = last_request(voicegenie_sandbox)
        effects.append((request.operation, request.campaign_id, request.status, request.is_read, request.acted))
    assert effects == [
        ("upload", "ready", 200, False, True),
        ("upload", "ready", 200, False, False),
        ("upload", "nobody", 404, False, False),
    ]
    assert voicegenie_sandbox.request_count("upload", "ready") == 2


def test_an_upload_without_a_campaign_makes_one(voicegenie_sandbox):
    body = {"campaign_name": "new", "script_id": "s", "contacts": [{"phone_number": "+34600111222"}]}
    campaign_id = send(voicegenie_sandbox, "/uploadCampaignData", "POST", json=body).json()["data"]["campaign_id"]
    assert last_request(voicegenie_sandbox).acted
    made = send(voicegenie_sandbox, f"/campaign/{campaign_id}").json()["data"]
    assert (made["name"], made["script_id"], made["total_count"]) == ("new", "s", 1)
    assert send(voicegenie_sandbox, f"/startCampaign/{campaign_id}").ok
    del body["script_id"], body["contacts"][0]["phone_number"]
    response = send(voicegenie_sandbox, "/uploadCampaignData", "POST", json=body).json()["data"]
    assert response["failed_count"] == 1
    assert last_request(voicegenie_sandbox).acted
    refused = send(voicegenie_sandbox, f"/startCampaign/{response['campaign_id']}").json()
    assert refused["details"]["missing"] == ["script_id", "contacts"]


GOOD = [{"phone_number": "+34600111222"}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "contacts",
        "[" * 100_000,
        json.dumps([{"campaign_id": "ready", "contacts": GOOD}]),
        json.dumps({"campaign_id": "ready"}),
        json.dumps({"campaign_id": "ready", "contacts": []}),
        json.dumps({"campaign_id": "ready", "contacts": GOOD[0]}),
        json.dumps({"campaign_id": None, "contacts": GOOD}),
        json.dumps({"campaign_id": "", "contacts": GOOD}),
        json.dumps({"contacts": GOOD}),
        json.dumps({"campaign_name": 5, "contacts": GOOD}),
        json.dumps({"campaign_name": "new", "script_id": 5, "contacts": GOOD}),
        json.dumps({"campaign_id": "ready", "contacts": [{"phone_number": float("nan")}]}),
        json.dumps({"campaign_id": "ready", "contacts": [{"phone_number": "\ud800"}]}),
    ],
)
def test_wrong_uploads_are_refused(voicegenie_sandbox, text):
    response = send(voicegenie_sandbox, "/uploadCampaignData", "POST", data=text)
    assert (response.status_code, response.json()["error"]) == (400, "BAD_REQUEST")
    assert voicegenie_sandbox.uploaded("ready") == []
    assert not last_request(voicegenie_sandbox).acted


def test_an_upload_that_is_too_large_is_refused_when_it_is_there(voicegenie_sandbox):
    assert voicegenie_sandbox.sandbox.max_upload_bytes == 500_000_000
    voicegenie_sandbox.sandbox.max_upload_bytes = 1000
    response = upload(voicegenie_sandbox, "ready", *["+34600111222"] * 100_000)
    assert (response.status_code, response.json()["error"]) == (413, "PAYLOAD_TOO_LARGE")
    assert upload(voicegenie_sandbox, "ready", "+34600111222").ok
    assert voicegenie_sandbox.uploaded("ready") == ["+34600111222"]


def test_an_upload_that_breaks_off_is_no_request_and_no_error(voicegenie_sandbox, caplog):
    caplog.set_level("ERROR", "uvicorn.error")
    host, port = voicegenie_sandbox.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /uploadCampaignData HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
    assert send(voicegenie_sandbox, "/campaign/ready").ok
    assert voicegenie_sandbox.request_count("upload") == 0
    assert not [record for record in caplog.records if record.name == "uvicorn.error"]


def test_new_operations_need_a_key_and_a_campaign(voicegenie_sandbox):
    for key, status, code in (("wrong", 401, "UNAUTHORIZED"), (None, 404, "NOT_FOUND")):
        for path in ("/uploadCampaignData", "/getHistory"):
            body = {"campaign_id": "nobody", "contacts": GOOD}
            response = send(voicegenie_sandbox, path, "POST", key=key, json=body)
            assert (response.status_code, response.json()["error"]) == (status, code)
    assert send(voicegenie_sandbox, "/fetchQuota", key="wrong").status_code == 401
    assert send(voicegenie_sandbox, "/getHistory").json()["error"] == "NO_SUCH_ENDPOINT"


def test_the_documented_rate_of_uploads(voicegenie_sandbox):
    voicegenie_sandbox.sandbox.enforce_rate_limits = True
    codes = [upload(voicegenie_sandbox, "ready", "+34600111222").status_code for _ in range(51)]
    assert codes == [200] * 50 + [429]
    assert send(voicegenie_sandbox, "/campaign/ready").ok


def test_uploaded_contacts_are_called_from_now_on(clock):
    store = SandboxStore(seeds=lambda: [SandboxCampaign(id="c", total_count=10)], clock=clock)
    store.start("c")
    clock.now = 35.2
    assert store.progress(store.find("c")).pending == 0
    store.upload("c", [{"phone_number": f"+346001112{number}"} for number in range(10, 30)])
    progress = store.progress(store.find("c"))
    assert (progress.completed + progress.failed, progress.in_progress, progress.pending) == (5, 5, 20)
    clock.now = 45.9
    progress = store.progress(store.find("c"))
    assert (progress.completed + progress.failed, progress.in_progress, progress.pending) == (10, 11, 9)
    clock.now = 90
    campaign = store.find("c")
    assert (campaign.status, store.progress(campaign).completed) == ("completed", 24)
    calls, total = store.history("c", limit=100, offset=0, status=None, since=None, until=None)
    assert total == 30
    assert [call["phone_number"] for call in calls[9:12]] == ["+15550000010", "+34600111210", "+34600111211"]
    begun = [datetime.fromisoformat(call["call_time"]) for call in calls]
    assert begun == sorted(begun)
    # The first ten began in the first ten seconds, the others after the upload.
    assert [round((moment - begun[0]).total_seconds()) for moment in (begun[9], begun[10], begun[29])] == [9, 35, 54]


@pytest.mark.parametrize("status", ["completed", "paused"])
def test_a_campaign_that_does_not_run_calls_no_uploaded_contact(clock, status):
    store = SandboxStore(seeds=lambda: [SandboxCampaign(id="c", total_count=10)], clock=clock)
    store.start("c")
    clock.now = 1000
    store.change("c", status=status)
    store.upload("c", GOOD)
    clock.now = 2000
    assert (store.find("c").status, store.progress(store.find("c")).pending) == (status, 1)
    store.change("c", status="scheduled")
    store.start("c")
    clock.now = 2032
    assert (store.find("c").status, store.progress(store.find("c")).pending) == ("completed", 0)


def test_the_history_has_all_calls_that_ended_on_pages(voicegenie_sandbox):
    voicegenie_sandbox.speed = 1e6
    campaign = voicegenie_sandbox.add_campaign(total_count=7, completed_count=2, failed_count=2)
    contacts = [{"phone_number": f"+346001110{number:02}", "name": f"N {number}"} for number in range(20)]
    body = {"campaign_id": campaign.id, "contacts": [*contacts, *GOOD]}
    assert send(voicegenie_sandbox, "/uploadCampaignData", "POST", json=body).ok
    assert history(voicegenie_sandbox, campaign.id)["pagination"] == {"total": 4, "limit": 50, "offset": 0}
    send(voicegenie_sandbox, f"/startCampaign/{campaign.id}")
    time.sleep(0.01)
    assert voicegenie_sandbox.status(campaign.id) == "completed"
    pages = [history(voicegenie_sandbox, campaign.id, limit=9, offset=offset) for offset in (0, 9, 18, 27, 36)]
    assert [len(page["history"]) for page in pages] == [9, 9, 9, 1, 0]
    assert pages[1]["pagination"] == {"total": 28, "limit": 9, "offset": 9}
    calls = [call for page in pages for call in page["history"]]
    assert calls == history(voicegenie_sandbox, campaign.id)["history"]
    assert [call["call_id"] for call in calls] == [f"call-{campaign.id}-{number:06}" for number in range(1, 29)]
    assert [call["phone_number"] for call in calls[7:27]] == [contact["phone_number"] for contact in contacts]
    assert [call["contact_name"] for call in calls[6:]] == ["Contact 7", *(f"N {number}" for number in range(20)), None]
    assert [call["status"] for call in calls[:4]] == ["answered", "answered", "failed", "failed"]
    statistics = send(voicegenie_sandbox, f"/getCampaignStats/{campaign.id}").json()["data"]
    for status, count in statistics["call_status_breakdown"].items():
        assert sum(call["status"] == status for call in calls) == count
    assert sum(call["duration"] for call in calls) == statistics["total_call_duration"]
    assert all(bool(call["recording_url"]) == (call["status"] == "answered") for call in calls)
    assert not last_request(voicegenie_sandbox).acted
    assert [request.is_read for request in voicegenie_sandbox.sandbox.requests if request.operation == "history"] == [
        True
    ] * 7


@pytest.mark.parametrize("status", [None, "answered", "busy", "no_answer", "failed"])
def test_filters_of_the_history(clock, status):
    campaign = SandboxCampaign(id="c", total_count=90, completed_count=11, failed_count=7)
    store = SandboxStore(seeds=lambda: [campaign], clock=clock)
    store.start("c")
    clock.now = 20
    store.pause("c")
    clock.now = 100
    store.start("c")
    clock.now = 170
    every, total = store.history("c", limit=1000, offset=0, status=None, since=None, until=None)
    assert total == len(every) == 78
    moments = [datetime.fromisoformat(call["call_time"]) for call in every]
    between = moments[40] + timedelta(milliseconds=1)
    bounds = [None, moments[0], moments[5], moments[14], moments[37], between, moments[77] + timedelta(days=1)]
    for since in bounds:
        for until in bounds:
            wanted = [
                call
                for call, moment in zip(every, moments, strict=True)
                if status in (None, call["status"])
                and (since is None or moment >= since)
                and (until is None or moment <= until)
            ]
            for offset, limit in ((0, 1000), (0, 1), (3, 4), (20, 20), (500, 1)):
                page, total = store.history("c", limit=limit, offset=offset, status=status, since=since, until=until)
                assert total == len(wanted)
                assert page == wanted[offset : offset + limit]


def test_filters_of_the_history_over_http(voicegenie_sandbox):
    calls = history(voicegenie_sandbox, "completed")["history"]
    assert history(voicegenie_sandbox, "completed", status_filter="failed")["history"] == calls[8:]
    filters = {"date_from": calls[2]["call_time"], "date_to": calls[5]["call_time"]}
    assert history(voicegenie_sandbox, "completed", **filters)["history"] == calls[2:6]


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"campaign_id": 5},
        {"campaign_id": "ready", "limit": 0},
        {"campaign_id": "ready", "limit": 1001},
        {"campaign_id": "ready", "limit": True},
        {"campaign_id": "ready", "limit": "50"},
        {"campaign_id": "ready", "offset": -1},
        {"campaign_id": "ready", "status_filter": "voicemail"},
        {"campaign_id": "ready", "status_filter": ["busy"]},
        {"campaign_id": "ready", "date_from": "yesterday"},
        {"campaign_id": "ready", "date_to": 5},
    ],
)
def test_wrong_requests_for_the_history_are_refused(voicegenie_sandbox, body):
    response = send(voicegenie_sandbox, "/getHistory", "POST", json=body)
    assert (response.status_code, response.json()["error"]) == (400, "BAD_REQUEST")


def test_a_page_of_a_long_history_takes_no_longer(clock):
    store = SandboxStore(clock=clock)
    clock.now = 1e7
    since = datetime.now(UTC) + timedelta(seconds=1e6)
    lines = 0

    def count(frame, event, argument):
        nonlocal lines
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        pages = [
            store.history("always-running", limit=1000, offset=500_000, status=status, since=since, until=None)
            for status in (None, "answered", "busy")
        ]
    finally:
        sys.settrace(before)
    for page, total in pages:
        assert len(page) == 1000
        assert total > 800_000
    # So many for each call on a page; to count the calls one by one would take millions.
    assert lines < 100 * 3000


def test_quota(voicegenie_sandbox):
    quota = send(voicegenie_sandbox, "/fetchQuota").json()["data"]
    assert quota["quota"]["calls"] == {"used": 0, "limit": 10_000, "remaining": 10_000, "percentage": 0}
    assert quota["billingCycle"] == "monthly"
    left = datetime.fromisoformat(quota["resetDate"]) - datetime.now(UTC)
    assert timedelta(0) < left <= timedelta(days=31)
    voicegenie_sandbox.sandbox.quota.calls.used = 9_950
    assert send(voicegenie_sandbox, "/fetchQuota").json()["data"]["quota"]["calls"]["remaining"] == 50
    change = {"calls": {"used": 30, "limit": 20}, "sms": {"limit": 0}}
    assert send(voicegenie_sandbox, "/_sandbox/quota", "PATCH", json=change).ok
    changed = send(voicegenie_sandbox, "/fetchQuota").json()["data"]["quota"]
    assert changed["calls"] == {"used": 30, "limit": 20, "remaining": 0, "percentage": 150}
    assert changed["sms"] == {"used": 0, "limit": 0, "remaining": 0, "percentage": 100}
    assert last_request(voicegenie_sandbox).is_read
    assert send(voicegenie_sandbox, "/_sandbox/state").json()["quota"]["quota"] == changed


@pytest.mark.parametrize(
    "body", [{"faxes": {"used": 1}}, {"calls": 5}, {"calls": {"used": -1}}, {"calls": {"left": 1}}]
)
def test_a_wrong_quota_is_refused(voicegenie_sandbox, body):
    assert send(voicegenie_sandbox, "/_sandbox/quota", "PATCH", json={"sms": {"used": 1}, **body}).status_code == 400
    assert voicegenie_sandbox.sandbox.quota.sms.used == 0


def test_contacts_may_be_registered_later(voicegenie_sandbox):
    def registered():
        listed = send(voicegenie_sandbox, "/fetchCampaignData?limit=1").json()["data"]["campaigns"][0]
        return listed["registered_count"], listed["total_count"]

    upload(voicegenie_sandbox, "ready", "+34600111222")
    assert registered() == (21, 21)
    for count, seen in ((20, 20), (None, 21)):
        change = {"registered_count": count}
        state = send(voicegenie_sandbox, "/_sandbox/campaigns/ready", "PATCH", json=change).json()
        assert (state["registered_count"], state["uploaded_count"]) == (count, 1)
        assert registered() == (seen, 21)


def test_faults_of_new_operations(voicegenie_sandbox):
    voicegenie_sandbox.inject("status", "upload", status=503, campaign_id="ready")
    assert upload(voicegenie_sandbox, "paused", "+34600111222").status_code == 200
    assert upload(voicegenie_sandbox, "ready", "+34600111222").status_code == 503
    assert voicegenie_sandbox.uploaded("ready") == []
    voicegenie_sandbox.inject("close", "upload", after_acting=True)
    with pytest.raises(requests.ConnectionError):
        upload(voicegenie_sandbox, "ready", "+34600111222")
    assert last_request(voicegenie_sandbox).acted
    assert upload(voicegenie_sandbox, "ready", "+34600111222").json()["data"]["uploaded_count"] == 0
    assert voicegenie_sandbox.uploaded("ready") == ["+34600111222"]
    voicegenie_sandbox.inject("not_json", "history")
    body = {"campaign_id": "completed"}
    assert "<html>" in send(voicegenie_sandbox, "/getHistory", "POST", json=body).text
    voicegenie_sandbox.inject("status", "quota", status=500)
    assert send(voicegenie_sandbox, "/fetchQuota").status_code == 500
    assert send(voicegenie_sandbox, "/fetchQuota").ok


def test_cached_statistics(voicegenie_sandbox):
    voicegenie_sandbox.sandbox.cache_stats = True
    assert send(voicegenie_sandbox, "/getCampaignStats/ready").json()["data"]["started_at"] is None
    send(voicegenie_sandbox, "/startCampaign/ready")
    assert send(voicegenie_sandbox, "/getCampaignStats/ready").json()["data"]["started_at"] is None
    voicegenie_sandbox.sandbox.cache_stats = False
    assert send(voicegenie_sandbox, "/getCampaignStats/ready").json()["data"]["started_at"] is not None


def test_control_endpoints(voicegenie_sandbox):
    made = send(voicegenie_sandbox, "/_sandbox/campaigns", "POST", json={"id": "a/b", "total_count": 3})
    assert made.json()["status"] == "scheduled"
    assert send(voicegenie_sandbox, "/startCampaign/a%2Fb").json()["data"]["campaign_id"] == "a/b"
    assert send(voicegenie_sandbox, "/startCampaign/a/b").status_code == 404
    assert send(voicegenie_sandbox, "/_sandbox/campaigns/a%2Fb", "PATCH", json={"status": "stopped"}).ok
    state = send(voicegenie_sandbox, "/_sandbox/state").json()
    (campaign,) = [campaign for campaign in state["campaigns"] if campaign["id"] == "a/b"]
    assert (campaign["status"], campaign["start_count"]) == ("stopped", 1)
    assert [(r["operation"], r["acted"]) for r in state["requests"]] == [("start", True)]
    assert send(voicegenie_sandbox, "/_sandbox/campaigns/a%2Fb", "DELETE").ok
    assert send(voicegenie_sandbox, "/campaign/a%2Fb").status_code == 404


def test_faults_over_http(voicegenie_sandbox):
    fault = {"kind": "status", "operation": "get", "status": 503, "times": 2}
    assert send(voicegenie_sandbox, "/_sandbox/faults", "POST", json=fault).ok
    assert [send(voicegenie_sandbox, "/campaign/ready").status_code for _ in range(3)] == [503, 503, 200]
    send(voicegenie_sandbox, "/_sandbox/faults", "POST", json={**fault, "times": None})
    send(voicegenie_sandbox, "/_sandbox/faults", "DELETE")
    assert send(voicegenie_sandbox, "/campaign/ready").ok


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("faults", {"kind": "explode"}),
        ("faults", {"operation": "get"}),
        ("faults", {"kind": "close", "colour": "red"}),
        ("faults", {"kind": "close", "operation": "dance"}),
        ("faults", [1]),
        ("campaigns", {"total_count": "many"}),
        ("campaigns", {"colour": "red"}),
    ],
)
def test_wrong_control_requests_are_refused(voicegenie_sandbox, path, body):
    assert send(voicegenie_sandbox, f"/_sandbox/{path}", "POST", json=body).status_code == 400


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example.com"}, {"Host": "evil.example.com"}, {"Origin": "null"}]
)
def test_pages_of_another_origin_cannot_control_it(voicegenie_sandbox, headers):
    response = send(voicegenie_sandbox, "/_sandbox/faults", "POST", json={"kind": "close"}, headers=headers)
    assert response.status_code == 403


def test_a_reset_restores_campaigns_and_statistics(voicegenie_sandbox):
    voicegenie_sandbox.sandbox.cache_stats = True
    voicegenie_sandbox.add_campaign(id="new")
    send(voicegenie_sandbox, "/startCampaign/ready")
    assert send(voicegenie_sandbox, "/getCampaignStats/ready").json()["data"]["started_at"]
    response = send(voicegenie_sandbox, "/_sandbox/page/reset", "POST", headers={"Origin": "https://evil.example.com"})
    assert response.status_code == 403
    assert voicegenie_sandbox.status("ready") == "running"
    assert send(voicegenie_sandbox, "/_sandbox/page/reset", "POST").ok
    assert voicegenie_sandbox.status("ready") == "scheduled"
    assert send(voicegenie_sandbox, "/getCampaignStats/ready").json()["data"]["started_at"] is None
    assert send(voicegenie_sandbox, "/campaign/new").status_code == 404


def test_the_page_says_what_took_effect(voicegenie_sandbox):
    upload(voicegenie_sandbox, "ready", "12")
    for path in ("/campaign/ready", "/startCampaign/ready", "/startCampaign/draft"):
        send(voicegenie_sandbox, path)
    history(voicegenie_sandbox, "ready")
    page = send(voicegenie_sandbox, "/").text
    rows = re.findall(r"<td>(\w+)</td><td>(?:ready|draft)</td>\s*<td>(\d+)</td>\s*<td>([\w ]+)</td>", page)
    assert rows == [
        ("history", "200", "only reads"),
        ("start", "422", "no"),
        ("start", "200", "yes"),
        ("get", "200", "only reads"),
        ("upload", "200", "no"),
    ]


@pytest.mark.parametrize(("speed", "words"), [(1.0, "at its normal speed."), (10.0, "10 times as fast.")])
def test_the_page_says_how_fast_time_runs(voicegenie_sandbox, speed, words):
    voicegenie_sandbox.speed = speed
    assert f"Time runs {words}" in send(voicegenie_sandbox, "/").text


def test_a_notice_about_faults_ends_with_them(voicegenie_sandbox):
    voicegenie_sandbox.inject("status", "get")
    assert "The fault is switched on." in send(voicegenie_sandbox, "/?did=on").text
    assert "switched off." not in send(voicegenie_sandbox, "/?did=off").text
    assert send(voicegenie_sandbox, "/campaign/ready").status_code == 500
    assert "The fault is switched on." not in send(voicegenie_sandbox, "/?did=on").text
    assert "All faults are switched off." in send(voicegenie_sandbox, "/?did=off").text


def test_names_are_escaped_on_the_page(voicegenie_sandbox):
    voicegenie_sandbox.add_campaign(id='"><b>', name="<script>")
    voicegenie_sandbox.inject("close", campaign_id='"><b>')
    page = send(voicegenie_sandbox, "/").text
    assert '"><b>' not in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_one_campaign_never_ends(clock):
    store = SandboxStore(speed=60, clock=clock)
    clock.now = 30 * 24 * 3600
    assert store.find("always-running").status == "running"
    assert store.find("running").status == "completed"


def test_an_unknown_path_does_not_look_like_an_unknown_campaign(voicegenie_sandbox):
    assert send(voicegenie_sandbox, "/v2/campaign/ready").json()["error"] == "NO_SUCH_ENDPOINT"


def command(*arguments):
    return [sys.executable, "-m", "airflow_provider_voicegenie.sandbox", *arguments]


def test_the_command():
    with subprocess.Popen(
        command("--port", "0", "--speed", "60", "--api-key", "k"), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            first = process.stdout.readline()
            url = first.split(" on ")[1].split(" ")[0]
            assert requests.get(f"{url}/campaign/ready", headers={"x-api-key": "k"}, timeout=60).ok
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--host", "0.0.0.0"], "--allow-remote"), (["--speed", "0"], "above 0")]
)
def test_the_command_refuses(arguments, words):
    result = subprocess.run(command("--port", "0", *arguments), capture_output=True, text=True, timeout=300)
    assert result.returncode
    assert words in result.stderr


def test_a_port_that_is_taken_is_said_to_be(voicegenie_sandbox):
    port = voicegenie_sandbox.url.rpartition(":")[2]
    result = subprocess.run(command("--port", port), capture_output=True, text=True, timeout=300)
    assert f"port {port}" in result.stderr
    assert "Choose another" in result.stderr


def test_the_connection_of_the_fixture_carries_extras(voicegenie_sandbox):
    extra = json.loads(json.loads(voicegenie_sandbox.connection(timeout=3))["extra"])
    assert extra == {"timeout": 3, "campaign_url": f"{voicegenie_sandbox.url}/#campaign-{{campaign_id}}"}


def test_a_campaign_that_has_ended_can_be_started_again_after_a_time():
    now = [0.0]
    store = SandboxStore(speed=600, clock=lambda: now[0], reset_after=150)
    store.start("ready")
    now[0] += 60
    ended = store.find("ready")
    assert ended.status == "completed"
    ended.ended_at -= timedelta(seconds=149)
    assert store.find("ready").status == "completed"
    ended.ended_at -= timedelta(seconds=1)
    assert {each.id: each.status for each in store.all()}["ready"] == "scheduled"
    assert store.start("ready").start_count == 1
    # One that was not started here stays as it is, and so does one that is none of the initial ones.
    assert store.find("completed").status == "completed"
    other = store.put(SandboxCampaign(id="other", total_count=1))
    store.start("other")
    now[0] += 60
    other.ended_at = store.find("other").ended_at - timedelta(days=1)
    assert store.find("other").status == "completed"
