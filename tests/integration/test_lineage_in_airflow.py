# SPDX-License-Identifier: Apache-2.0
"""The events that OpenLineage's own listener writes in a real Airflow."""

from __future__ import annotations

import csv
import json

import pytest
from helpers.leaks import MARKED_PERSON, leak_in, person_in
from services import wait_for

pytest.importorskip("airflow.providers.openlineage")

pytestmark = pytest.mark.airflow

DAG = """
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow.providers.openlineage.utils.selective_enable import enable_lineage
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator

folder = {folder!r}
# On a busy machine, Airflow itself fails a try before it begins.
again = {{"retries": 3, "retry_delay": timedelta(seconds=1)}}
with DAG(
    "lineage", schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), default_args=again
) as dag:
    upload = UploadContactsOperator(task_id="upload", campaign_id="filled", contacts=folder + "/people.csv")
    start = StartCampaignOperator(
        task_id="start", campaign_id="filled", wait_for_completion=True, deferrable=True, poll_interval=0.5
    )
    history = CallHistoryToObjectStorageOperator(task_id="history", campaign_id="filled", path=folder + "/calls.csv")
    fails = StartCampaignOperator(task_id="fails", campaign_id="nobody")
    upload >> start >> history >> fails
enable_lineage(dag)
"""


def text_of_events(shared):
    return shared.lineage.read_text() if shared.lineage.exists() else ""


def test_the_graph_leads_from_file_to_campaign_to_file(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    with (folder / "people.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, MARKED_PERSON)
        writer.writeheader()
        writer.writerows({**MARKED_PERSON, "phone_number": f"{MARKED_PERSON['phone_number']}{i}"} for i in range(5))
    shared.sandbox.add_campaign(id="filled", total_count=0)
    shared.sandbox.speed = 30
    shared.add_dags("lineage", DAG.format(folder=str(folder)))
    ended = "SELECT state FROM dag_run WHERE dag_id = 'lineage' AND state IN ('success', 'failed')"
    wait_for("the end of the run", lambda: shared.query(ended))
    assert shared.states("lineage") == [
        {"upload": "success", "start": "success", "history": "success", "fails": "failed"}
    ]

    # The process that tells of the last task may end after the task.
    wait_for("the last event", lambda: '"lineage.fails"' in text_of_events(shared))
    text = text_of_events(shared)
    assert leak_in(text) is None
    assert person_in(text) is None
    events = {}
    for line in text.splitlines():
        event = json.loads(line)
        events.setdefault(event["job"]["name"].removeprefix("lineage."), {})[event["eventType"]] = event
    campaign = (shared.sandbox.url.replace("http://", "voicegenie://"), "filled")
    people, calls = ("file", str(folder / "people.csv")), ("file", str(folder / "calls.csv"))
    graph = {
        task: [[(each["namespace"], each["name"]) for each in of["COMPLETE"][side]] for side in ("inputs", "outputs")]
        for task, of in events.items()
        if task in ("upload", "start", "history")
    }
    assert graph == {
        "upload": [[people], [campaign]],
        "start": [[campaign], [campaign]],
        "history": [[campaign], [calls]],
    }

    def output(task):
        (found,) = events[task]["COMPLETE"]["outputs"]
        return found

    assert output("upload")["outputFacets"]["outputStatistics"]["rowCount"] == 5
    written = output("history")["outputFacets"]["outputStatistics"]
    assert (written["rowCount"], written["size"]) == (5, (folder / "calls.csv").stat().st_size)
    facet = output("start")["facets"]["voicegenie_campaign"]
    assert (facet["status"], facet["started_by_task"]) == ("completed", True)
    assert facet["statistics"]["total_contacts"] == 5
    assert "[NOT_FOUND: " in events["fails"]["FAIL"]["run"]["facets"]["errorMessage"]["message"]
    for task, of in events.items():
        for event in of.values() if task in (*graph, "fails") else ():
            about = event["run"]["facets"]["voicegenie_task"]
            assert about["campaign_id"] == ("nobody" if task == "fails" else "filled")
            assert about["voicegenie_conn_id"] == "voicegenie_default"
    assert [each["name"] for each in events["fails"]["FAIL"]["outputs"]] == ["nobody"]
