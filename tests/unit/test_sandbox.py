# SPDX-License-Identifier: Apache-2.0
"""The sandbox itself: its progress, its control endpoints, its command."""

from __future__ import annotations

import json
import re
import subprocess
import sys

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
        method, f"{sandbox.url}{path}", headers=headers, timeout=5, allow_redirects=False, **arguments
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
    for path in ("/campaign/ready", "/startCampaign/ready", "/startCampaign/draft"):
        send(voicegenie_sandbox, path)
    page = send(voicegenie_sandbox, "/").text
    rows = re.findall(r"<td>(\w+)</td><td>(?:ready|draft)</td>\s*<td>(\d+)</td>\s*<td>([\w ]+)</td>", page)
    assert rows == [("start", "422", "no"), ("start", "200", "yes"), ("get", "200", "only reads")]


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
            assert requests.get(f"{url}/campaign/ready", headers={"x-api-key": "k"}, timeout=5).ok
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--host", "0.0.0.0"], "--allow-remote"), (["--speed", "0"], "above 0")]
)
def test_the_command_refuses(arguments, words):
    result = subprocess.run(command("--port", "0", *arguments), capture_output=True, text=True, timeout=60)
    assert result.returncode
    assert words in result.stderr


def test_a_port_that_is_taken_is_said_to_be(voicegenie_sandbox):
    port = voicegenie_sandbox.url.rpartition(":")[2]
    result = subprocess.run(command("--port", port), capture_output=True, text=True, timeout=60)
    assert f"port {port}" in result.stderr
    assert "Choose another" in result.stderr


def test_the_connection_of_the_fixture_carries_extras(voicegenie_sandbox):
    extra = json.loads(json.loads(voicegenie_sandbox.connection(timeout=3))["extra"])
    assert extra == {"timeout": 3, "campaign_url": f"{voicegenie_sandbox.url}/#campaign-{{campaign_id}}"}
