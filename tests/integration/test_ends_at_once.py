# SPDX-License-Identifier: Apache-2.0
"""Several campaigns that end at once, a triggerer that is killed soon after, and a connection that is changed."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from cryptography.fernet import Fernet
from helpers.sandboxes import second_sandbox
from services import AIRFLOW_VERSION, IS_AIRFLOW_2, Services, wait_for

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(IS_AIRFLOW_2, reason="Airflow has watchers since 3.0"),
]

KEEPS_STATE = AIRFLOW_VERSION >= (3, 3)

DAG = """
from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow_provider_voicegenie.triggers.events import CampaignEndedTrigger

trigger = CampaignEndedTrigger(voicegenie_conn_id="stored", poll_interval=1)
ended = Asset("ended", watchers=[AssetWatcher(name="ended", trigger=trigger)])

with DAG("ends", schedule=[ended]):
    @task
    def nothing():
        pass

    nothing()
"""

GROUP = 5


def told(airflow):
    """Return which ends were told, in order."""
    rows = airflow.query("SELECT extra FROM asset_event ORDER BY id")
    return [json.loads(extra)["payload"]["campaign_id"] for (extra,) in rows]


def in_runs(airflow):
    """Return which ends are in the list of a run."""
    rows = airflow.query("SELECT extra FROM dagrun_asset_event JOIN asset_event ON asset_event.id = event_id")
    return {json.loads(extra)["payload"]["campaign_id"] for (extra,) in rows}


def store_connection(airflow, sandbox):
    """Store a connection, encrypted. Airflow's command line and its REST API would log the key in the same database."""
    connection = json.loads(sandbox.connection(timeout=5))
    fernet = Fernet(airflow.environment["AIRFLOW__CORE__FERNET_KEY"])
    password, extra = (fernet.encrypt(connection[name].encode()).decode() for name in ("password", "extra"))
    airflow.change("DELETE FROM connection WHERE conn_id = 'stored'")
    airflow.change(
        "INSERT INTO connection (conn_id, conn_type, host, password, extra, is_encrypted, is_extra_encrypted) "
        "VALUES ('stored', 'voicegenie', ?, ?, ?, 1, 1)",
        connection["host"],
        password,
        extra,
    )


def test_groups_of_ends_and_a_triggerer_that_is_killed_after_one(airflow, voicegenie_sandbox, tmp_path):
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "ends.py").write_text(DAG)
    groups = [[f"group-{group}-{number}" for number in range(GROUP)] for group in range(3)]
    with second_sandbox() as other, Services(airflow, kills=True) as services:
        for sandbox in (voicegenie_sandbox, other):
            for name in ("last", *itertools.chain(*groups)):
                sandbox.add_campaign(id=name, total_count=10**6, status="running")
        store_connection(airflow, voicegenie_sandbox)
        services.start("scheduler")
        services.start("triggerer")

        def looks(sandbox, number=4):
            wanted = sandbox.request_count("list") + number
            wait_for("looks at the list", lambda: sandbox.request_count("list") >= wanted)

        looks(voicegenie_sandbox)
        expected = []
        for group in groups:
            with voicegenie_sandbox.sandbox.store._lock:
                for name in group:
                    voicegenie_sandbox.sandbox.store.change(name, status="completed")
            expected += group
            wait_for("the events", lambda: set(told(airflow)) == set(expected))  # noqa: B023
            # Nothing ends that would make another run.
            wait_for("the runs", lambda: in_runs(airflow) == set(expected))  # noqa: B023
        assert sorted(told(airflow)) == sorted(expected)

        # What was stored 15 seconds ago is kept by now, and not told again. The time is what users were promised.
        time.sleep(15)
        services.kill("triggerer")
        services.start("triggerer")
        looks(voicegenie_sandbox)
        assert sorted(told(airflow)) == sorted(expected)

        # Another account, while the triggerer runs. What had ended there is old.
        with other.sandbox.store._lock:
            for name in groups[0]:
                other.sandbox.store.change(name, status="completed")
        store_connection(airflow, other)
        looks(other)
        before = len(voicegenie_sandbox.sandbox.requests)
        assert sorted(told(airflow)) == sorted(expected)
        other.sandbox.store.change("last", status="completed")
        wait_for("the last event", lambda: told(airflow)[-1] == "last")
        assert len(voicegenie_sandbox.sandbox.requests) == before
    assert sorted(told(airflow)) == sorted([*expected, "last"])
    text = (airflow.home / "triggerer.log").read_text()
    assert "Connection 'stored' has changed; the polls go on with what is in it now." in text
    if KEEPS_STATE:
        keys = {key for (key,) in airflow.query("SELECT key FROM asset_state_store")}
        assert len(keys) == 2
        assert all(key.startswith("voicegenie_all_campaigns.stored.") for key in keys)
