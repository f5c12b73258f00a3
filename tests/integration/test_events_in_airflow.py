# SPDX-License-Identifier: Apache-2.0
"""A watcher of ended campaigns in a real Airflow, whose triggerer is stopped and killed meanwhile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from services import AIRFLOW_VERSION, IS_AIRFLOW_2, wait_for

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(IS_AIRFLOW_2, reason="Airflow has watchers since 3.0"),
]

KEEPS_STATE = AIRFLOW_VERSION >= (3, 3)
#: In place of the name in the documentation, which an example has too.
ASSET = "docs_campaign_ended"
PAGE = Path(__file__).parents[2] / "docs" / "events.md"

#: Besides the DAG of the documentation: a second watcher of all campaigns, and one of some.
OTHERS = """
from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow_provider_voicegenie.triggers.events import CampaignEndedTrigger

for name, campaign_ids in {"all": None, "some": ["away", "nowhere"]}.items():
    trigger = CampaignEndedTrigger(campaign_ids, poll_interval=1.5)
    with DAG(name, schedule=[Asset(name, watchers=[AssetWatcher(name=name, trigger=trigger)])]):
        @task
        def nothing():
            pass

        nothing()
"""


def told(shared, asset=ASSET):
    """Return the payloads of the events of an asset."""
    rows = shared.query(
        "SELECT asset_event.extra FROM asset_event JOIN asset ON asset.id = asset_id WHERE name = ? "
        "ORDER BY asset_event.id",
        asset,
    )
    return [json.loads(extra)["payload"] for (extra,) in rows]


def ids(shared, asset=ASSET):
    return [payload["campaign_id"] for payload in told(shared, asset)]


def reported(shared):
    """Return what the runs of the documentation's DAG got, by campaign."""
    return {
        campaign["campaign_id"]: campaign
        for run in shared.returned("report", "after_each_campaign")
        for campaign in run
    }


def test_a_dag_that_is_woken_up_by_an_end(shared):
    sandbox, services = shared.sandbox, shared.services
    (example,) = re.findall(r"^```\{code-block\} python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    for name in ("first", "away", "killed", "last", "again"):
        sandbox.add_campaign(id=name, name=f"The {name}", total_count=10**6, status="running")
    store = sandbox.sandbox.store
    log = shared.home / "triggerer.log"
    before = len(log.read_text())

    def text_of_log():
        return log.read_text()[before:]

    def looks():
        """Wait until the watchers have looked, all of them, some times."""
        wanted = sandbox.request_count("list") + 4
        wait_for("looks at the list", lambda: sandbox.request_count("list") >= wanted)

    def begins(times):
        wait_for("watchers", lambda: len(re.findall("Watching .* campaigns? of", text_of_log())) >= times)
        looks()

    for old, new in {"poll_interval=60": "poll_interval=1", "voicegenie_campaign_ended": ASSET}.items():
        assert example.count(old) == 1
        example = example.replace(old, new)
    shared.add_dags("events", example)
    shared.add_dags("others", OTHERS)
    begins(3)
    assert told(shared) == []
    store.change("first", status="completed")
    wait_for("the first run", lambda: "first" in reported(shared))
    wait_for("the second watcher", lambda: ids(shared, "all") == ["first"])
    report = reported(shared)["first"]
    assert (report["name"], report["status"], report["total_count"]) == ("The first", "completed", 10**6)
    assert report["ended_at"].endswith("Z")
    looks()

    services.stop("triggerer")
    store.change("away", status="stopped")
    store.change("again", status="completed")
    services.start("triggerer")
    begins(6)
    if KEEPS_STATE:
        for asset, ends in {ASSET: 3, "all": 3, "some": 1}.items():
            wait_for(f"what ended meanwhile, of {asset}", lambda a=asset, n=ends: len(ids(shared, a)) == n)
    looks()

    services.kill("triggerer")
    store.change("killed", status="failed")
    # It goes on, which is seen by nobody, and ends again.
    store.change("again", status="running")
    store.change("again", status="completed")
    services.start("triggerer")
    begins(9)
    looks()
    store.change("last", status="completed")
    wait_for("the last run", lambda: "last" in reported(shared))
    looks()
    meanwhile = ["again", "again", "away", "killed"] if KEEPS_STATE else []
    assert sorted(ids(shared)) == sorted(ids(shared, "all")) == sorted(["first", "last", *meanwhile])
    assert ids(shared, "some") == (["away"] if KEEPS_STATE else [])
    assert set(reported(shared)) == set(ids(shared))
    text = text_of_log()
    assert re.search(
        r"Watching \d+ campaigns of the connection 'voicegenie_default', of which \d+ have not ended", text
    )
    assert "Campaign 'first' has ended: status 'completed'" in text
    # One of the watched ids is of no campaign, which each of the three triggerers says once.
    assert text.count("NOT_FOUND: watching goes on") == 3
    if KEEPS_STATE:
        of_test = "SELECT id FROM asset WHERE name IN (?, 'all', 'some')"
        kept = shared.query(f"SELECT key, value FROM asset_state_store WHERE asset_id IN ({of_test})", ASSET)
        # Behind it comes the digest of the account.
        assert sorted(key.rpartition(".")[0] for key, _ in kept) == [
            "voicegenie_all_campaigns.voicegenie_default",
            "voicegenie_all_campaigns.voicegenie_default",
            "voicegenie_some_campaigns.voicegenie_default",
        ]
        assert not any("last" in value for _, value in kept)
