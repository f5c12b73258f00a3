# SPDX-License-Identifier: Apache-2.0
"""The events that OpenLineage's own listener writes in a real Airflow."""

from __future__ import annotations

import csv
import json
from textwrap import dedent

import pytest
from helpers.leaks import MARKED_PERSON, leak_in, person_in
from services import Services, wait_for

pytest.importorskip("airflow.providers.openlineage")

pytestmark = pytest.mark.airflow

DAG = """
import os
from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator

folder = os.environ["FOLDER"]
with DAG("lineage", schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
    upload = UploadContactsOperator(task_id="upload", campaign_id="filled", contacts=folder + "/people.csv")
    start = StartCampaignOperator(
        task_id="start", campaign_id="filled", wait_for_completion=True, deferrable=True, poll_interval=0.5
    )
    history = CallHistoryToObjectStorageOperator(task_id="history", campaign_id="filled", path=folder + "/calls.csv")
    fails = StartCampaignOperator(task_id="fails", campaign_id="nobody")
    upload >> start >> history >> fails
"""


def test_the_graph_leads_from_file_to_campaign_to_file(airflow, voicegenie_sandbox, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    airflow.dags = tmp_path_factory.mktemp("dags")
    (airflow.dags / "dag.py").write_text(dedent(DAG))
    with (folder / "people.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, MARKED_PERSON)
        writer.writeheader()
        writer.writerows({**MARKED_PERSON, "phone_number": f"{MARKED_PERSON['phone_number']}{i}"} for i in range(5))
    log = folder / "events.jsonl"
    airflow.environment |= {
        "FOLDER": str(folder),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(log), "append": True}),
        # All that a task has, as far as it is JSON, so that whoever is in it is found.
        "AIRFLOW__OPENLINEAGE__INCLUDE_FULL_TASK_INFO": "True",
    }
    voicegenie_sandbox.add_campaign(id="filled", total_count=0)
    voicegenie_sandbox.speed = 30

    def has_ended():
        return airflow.query("SELECT state FROM dag_run WHERE state IN ('success', 'failed')")

    with Services(airflow) as services:
        services.start("scheduler")
        services.start("triggerer")
        wait_for("the end of the run", has_ended)
    assert airflow.states("lineage") == [
        {"upload": "success", "start": "success", "history": "success", "fails": "failed"}
    ]

    text = log.read_text()
    assert leak_in(text) is None
    assert person_in(text) is None
    events = {}
    for line in text.splitlines():
        event = json.loads(line)
        events.setdefault(event["job"]["name"].removeprefix("lineage."), {})[event["eventType"]] = event
    campaign = (voicegenie_sandbox.url.replace("http://", "voicegenie://"), "filled")
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
