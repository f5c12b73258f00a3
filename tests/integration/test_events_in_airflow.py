# SPDX-License-Identifier: Apache-2.0
"""A watcher of ended campaigns in a real Airflow, whose triggerer is stopped and killed meanwhile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from services import AIRFLOW_VERSION, IS_AIRFLOW_2, Services, wait_for

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(IS_AIRFLOW_2, reason="Airflow has watchers since 3.0"),
]

KEEPS_STATE = AIRFLOW_VERSION >= (3, 3)
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


def told(airflow, asset="voicegenie_campaign_ended"):
    """Return the payloads of the events of an asset."""
    rows = airflow.query(
        "SELECT asset_event.extra FROM asset_event JOIN asset ON asset.id = asset_id WHERE name = ? "
        "ORDER BY asset_event.id",
        asset,
    )
    return [json.loads(extra)["payload"] for (extra,) in rows]


def ids(airflow, asset="voicegenie_campaign_ended"):
    return [payload["campaign_id"] for payload in told(airflow, asset)]


def reported(airflow):
    """Return what the runs of the documentation's DAG got, by campaign."""
    return {campaign["campaign_id"]: campaign for run in airflow.returned("report") for campaign in run}


def test_a_dag_that_is_woken_up_by_an_end(airflow, voicegenie_sandbox, tmp_path):
    (example,) = re.findall(r"^```\{code-block\} python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert "poll_interval=60" in example
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "example.py").write_text(example.replace("poll_interval=60", "poll_interval=1"))
    (airflow.dags / "others.py").write_text(OTHERS)
    for name in ("first", "away", "killed", "last", "again"):
        voicegenie_sandbox.add_campaign(id=name, name=f"The {name}", total_count=10**6, status="running")
    store = voicegenie_sandbox.sandbox.store
    logs = airflow.home / "triggerer.log"

    def looks():
        """Wait until the watchers have looked, all of them, some times."""
        wanted = voicegenie_sandbox.request_count("list") + 4
        wait_for("looks at the list", lambda: voicegenie_sandbox.request_count("list") >= wanted)

    def begins(times):
        wait_for("watchers", lambda: len(re.findall("Watching .* campaigns? of", logs.read_text())) >= times)
        looks()

    with Services(airflow, kills=True) as services:
        services.start("scheduler")
        services.start("triggerer")
        begins(3)
        assert told(airflow) == []
        store.change("first", status="completed")
        wait_for("the first run", lambda: "first" in reported(airflow))
        wait_for("the second watcher", lambda: ids(airflow, "all") == ["first"])
        report = reported(airflow)["first"]
        assert (report["name"], report["status"], report["total_count"]) == ("The first", "completed", 10**6)
        assert report["ended_at"].endswith("Z")
        looks()

        services.stop("triggerer")
        store.change("away", status="stopped")
        store.change("again", status="completed")
        services.start("triggerer")
        begins(6)
        if KEEPS_STATE:
            for asset, ends in {"voicegenie_campaign_ended": 3, "all": 3, "some": 1}.items():
                wait_for(f"what ended meanwhile, of {asset}", lambda a=asset, n=ends: len(ids(airflow, a)) == n)
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
        wait_for("the last run", lambda: "last" in reported(airflow))
        looks()
    meanwhile = ["again", "again", "away", "killed"] if KEEPS_STATE else []
    assert sorted(ids(airflow)) == sorted(ids(airflow, "all")) == sorted(["first", "last", *meanwhile])
    assert ids(airflow, "some") == (["away"] if KEEPS_STATE else [])
    assert set(reported(airflow)) == set(ids(airflow))
    text = logs.read_text()
    assert re.search(
        r"Watching \d+ campaigns of the connection 'voicegenie_default', of which \d+ have not ended", text
    )
    assert "Campaign 'first' has ended: status 'completed'" in text
    # One of the watched ids is of no campaign, which each of the three triggerers says once.
    assert text.count("NOT_FOUND: watching goes on") == 3
    if KEEPS_STATE:
        kept = airflow.query("SELECT key, value FROM asset_state_store")
        assert sorted(key for key, _ in kept) == [
            "voicegenie_all_campaigns.voicegenie_default",
            "voicegenie_all_campaigns.voicegenie_default",
            "voicegenie_some_campaigns.voicegenie_default",
        ]
        assert not any("last" in value for _, value in kept)
