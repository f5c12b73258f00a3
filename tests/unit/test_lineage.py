# SPDX-License-Identifier: Apache-2.0
"""What the tasks tell OpenLineage, asked the way its listener asks."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
from helpers.leaks import MARKED_KEY, MARKED_PERSON, leak_in, person_in
from helpers.tasks import complete, context, event_of, is_waiting, meanwhile

pytest.importorskip("airflow.providers.openlineage")

from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath, TaskDeferred
from airflow.providers.openlineage.extractors.base import DefaultExtractor
from airflow.providers.openlineage.utils.utils import TaskInfoComplete
from openlineage.client.serde import Serde

from airflow_provider_voicegenie import __version__
from airflow_provider_voicegenie.api.session import BoundSession
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor, CampaignReadySensor
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator


def told(task, when="complete"):
    """Return what an event holds of the task, as JSON, once nobody is in it; also where all of the task is wanted."""
    extractor = DefaultExtractor(task)
    found = {
        "start": extractor.extract,
        "complete": lambda: extractor.extract_on_complete(None),
        "failure": lambda: extractor.extract_on_failure(None),
    }[when]()
    text = Serde.to_json(found)
    for everything in (text, Serde.to_json({"task": TaskInfoComplete(task)})):
        assert leak_in(everything) is None
        assert person_in(everything) is None
    return json.loads(text)


def names(datasets):
    return [(dataset["namespace"], dataset["name"]) for dataset in datasets]


def facet(facets, name):
    """Return a facet without what says who made it."""
    return {key: value for key, value in facets[name].items() if not key.startswith("_")}


def run(task):
    if isinstance(task, UploadContactsOperator):
        # As Airflow does when it renders the task's templates.
        task.contacts = task.contacts
    task.execute(context())
    return task


@pytest.fixture
def namespace(sandbox):
    return sandbox.url.replace("http://", "voicegenie://")


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "people.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, MARKED_PERSON)
        writer.writeheader()
        writer.writerows({**MARKED_PERSON, "phone_number": f"+4915190817263{i}"} for i in range(3))
    return path


# What the tasks read and change.


def test_an_upload_reads_a_file_and_changes_the_campaign(sandbox, namespace, people):
    campaign_id = sandbox.add_campaign(total_count=0).id
    lineage = told(run(UploadContactsOperator(task_id="t", campaign_id=campaign_id, contacts=str(people))))
    assert names(lineage["inputs"]) == [("file", str(people))]
    assert names(lineage["outputs"]) == [(namespace, campaign_id)]
    assert facet(lineage["outputs"][0]["outputFacets"], "outputStatistics") == {"rowCount": 3}
    assert facet(lineage["run_facets"], "voicegenie_task") == {
        "campaign_id": campaign_id,
        "voicegenie_conn_id": "voicegenie_default",
    }


def test_rows_are_no_dataset(sandbox, namespace):
    campaign_id = sandbox.add_campaign(total_count=0).id
    task = run(UploadContactsOperator(task_id="t", campaign_id=campaign_id, contacts=[MARKED_PERSON]))
    lineage = told(task)
    assert lineage["inputs"] == []
    assert facet(lineage["outputs"][0]["outputFacets"], "outputStatistics") == {"rowCount": 1}


def test_a_start_reads_and_changes_the_campaign(sandbox, namespace):
    lineage = told(run(StartCampaignOperator(task_id="t", campaign_id="ready")))
    assert names(lineage["inputs"]) == names(lineage["outputs"]) == [(namespace, "ready")]
    found = facet(lineage["outputs"][0]["facets"], "voicegenie_campaign")
    assert found.pop("started_at")
    assert found == {"status": "running", "started_by_task": True}
    assert lineage["outputs"][0]["outputFacets"] == {}


def test_a_start_that_waited_tells_the_statistics(sandbox):
    task = StartCampaignOperator(task_id="t", campaign_id="long", wait_for_completion=True, poll_interval=0.1)
    with meanwhile(is_waiting(sandbox, "long"), complete(sandbox, "long")):
        run(task)
    found = facet(told(task)["outputs"][0]["facets"], "voicegenie_campaign")
    assert found["status"] == "completed"
    assert found["completed_at"]
    assert found["statistics"]["total_contacts"] == 10_000
    assert found["statistics"]["call_status_breakdown"]


def test_a_start_that_was_deferred_tells_the_same(sandbox, namespace):
    def make():
        return StartCampaignOperator(
            task_id="t", campaign_id="long", wait_for_completion=True, deferrable=True, poll_interval=0.1
        )

    about = context()
    with pytest.raises(TaskDeferred) as deferral:
        make().execute(about)
    complete(sandbox, "long")()
    about["ti"].next_method = deferral.value.method_name
    resumed = make()
    assert told(resumed, "start")["outputs"] == []
    resumed.resume_execution(deferral.value.method_name, {"event": event_of(deferral.value.trigger)}, about)
    lineage = told(resumed)
    assert names(lineage["outputs"]) == [(namespace, "long")]
    found = facet(lineage["outputs"][0]["facets"], "voicegenie_campaign")
    assert found["statistics"]["total_contacts"] == 10_000


def test_an_export_reads_the_campaign_and_writes_a_file(sandbox, namespace, tmp_path):
    sandbox.add_campaign(id="called", status="completed", total_count=1, completed_count=2)
    sandbox.sandbox.store.upload("called", [MARKED_PERSON])
    path = tmp_path / "calls.jsonl"
    lineage = told(run(CallHistoryToObjectStorageOperator(task_id="t", campaign_id="called", path=str(path))))
    assert person_in(path.read_text())
    assert names(lineage["inputs"]) == [(namespace, "called")]
    assert names(lineage["outputs"]) == [("file", str(path))]
    written = {"rowCount": len(path.read_text().splitlines()), "size": path.stat().st_size}
    assert facet(lineage["outputs"][0]["outputFacets"], "outputStatistics") == written


def test_a_pause_changes_the_campaign(sandbox, namespace):
    lineage = told(run(PauseCampaignOperator(task_id="t", campaign_id="running")))
    assert lineage["inputs"] == []
    assert names(lineage["outputs"]) == [(namespace, "running")]


@pytest.mark.parametrize(
    ("sensor", "campaign_id"), [(CampaignReadySensor, "ready"), (CampaignCompletedSensor, "completed")]
)
def test_a_sensor_reads_the_campaign(sandbox, namespace, sensor, campaign_id):
    lineage = told(run(sensor(task_id="t", campaign_id=campaign_id)))
    assert names(lineage["inputs"]) == [(namespace, campaign_id)]
    assert lineage["outputs"] == []


def test_facets_say_who_made_them(sandbox):
    lineage = told(run(StartCampaignOperator(task_id="t", campaign_id="ready")))
    for found, base in (
        (lineage["run_facets"]["voicegenie_task"], "RunFacet"),
        (lineage["outputs"][0]["facets"]["voicegenie_campaign"], "DatasetFacet"),
    ):
        assert found["_producer"] == f"pkg:pypi/airflow-provider-voicegenie@{__version__}"
        assert found["_schemaURL"].endswith(f"#/$defs/{base}")


# Before the work is done, and if it is not.


@pytest.mark.parametrize("when", ["start", "failure"])
def test_nothing_is_asked_for_what_is_not_known(sandbox, monkeypatch, people, when):
    monkeypatch.setattr(VoiceGenieHook, "get_connection", lambda *_: pytest.fail("the connection was asked for"))
    upload = told(UploadContactsOperator(task_id="t", campaign_id="ready", contacts=str(people)), when)
    assert (names(upload["inputs"]), upload["outputs"]) == ([("file", str(people))], [])
    history = told(CallHistoryToObjectStorageOperator(task_id="t", campaign_id="ready", path=str(people)), when)
    assert (history["inputs"], names(history["outputs"])) == ([], [("file", str(people))])
    start = told(StartCampaignOperator(task_id="t", campaign_id="ready"), when)
    assert (start["inputs"], start["outputs"]) == ([], [])
    assert facet(start["run_facets"], "voicegenie_task")["campaign_id"] == "ready"
    assert not sandbox.sandbox.requests


def test_a_task_that_failed(sandbox, namespace, people):
    task = UploadContactsOperator(task_id="t", campaign_id="running", contacts=str(people))
    with pytest.raises(AirflowFailException, match="CAMPAIGN_ALREADY_RUNNING"):
        run(task)
    lineage = told(task, "failure")
    assert names(lineage["inputs"]) == [("file", str(people))]
    assert names(lineage["outputs"]) == [(namespace, "running")]
    assert lineage["outputs"][0]["outputFacets"] == {}
    assert facet(lineage["run_facets"], "voicegenie_task") == {
        "campaign_id": "running",
        "voicegenie_conn_id": "voicegenie_default",
        "condition": "CAMPAIGN_ALREADY_RUNNING",
    }


def test_a_task_whose_connection_could_not_be_read(sandbox, monkeypatch):
    def unreadable(*_):
        raise RuntimeError(MARKED_KEY)

    monkeypatch.setattr(VoiceGenieHook, "get_connection", unreadable)
    task = StartCampaignOperator(task_id="t", campaign_id="ready", voicegenie_conn_id="another")
    with pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
        run(task)
    lineage = told(task, "failure")
    assert (lineage["inputs"], lineage["outputs"]) == ([], [])
    assert facet(lineage["run_facets"], "voicegenie_task") == {
        "campaign_id": "ready",
        "voicegenie_conn_id": "another",
        "condition": "CONNECTION_FAILED",
    }


@pytest.mark.parametrize("campaign_id", [None, "", "../x", {**MARKED_PERSON}, f"\n{MARKED_PERSON['name']}"])
def test_what_can_be_no_campaign_is_not_told(sandbox, campaign_id):
    task = StartCampaignOperator(task_id="t", campaign_id="ready")
    task.campaign_id = campaign_id
    with pytest.raises(AirflowFailException, match="INVALID_CAMPAIGN_ID"):
        run(task)
    found = DefaultExtractor(task).extract_on_failure(None)
    assert facet(Serde.to_dict(found)["run_facets"], "voicegenie_task") == {
        "voicegenie_conn_id": "voicegenie_default",
        "condition": "INVALID_CAMPAIGN_ID",
    }
    assert person_in(Serde.to_json(found)) is None


# Names.


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/a b#1?.csv", ("file", "/data/a b#1?.csv")),
        ("file:///data/x.csv.gz", ("file", "/data/x.csv.gz")),
        ("s3://bucket/folder/x y.csv", ("s3://bucket", "folder/x y.csv")),
        ("s3://aws_default@bucket/x.parquet", ("s3://bucket", "x.parquet")),
        ("s3a://bucket/x.parquet", ("s3://bucket", "x.parquet")),
        ("gcs://google@bucket/x.jsonl", ("gs://bucket", "x.jsonl")),
        ("abfs://azure@container/x.csv", ("abfs://container", "x.csv")),
        ("https://user:word@host/x.csv?signature=1&end=.csv", ("https://host", "x.csv")),
    ],
)
@pytest.mark.parametrize("form", [str, ObjectStoragePath])
def test_files_are_named_by_the_conventions_of_openlineage(path, expected, form):
    task = UploadContactsOperator(task_id="t", campaign_id="c", contacts=form(path))
    assert names(told(task, "start")["inputs"]) == [expected]


@pytest.mark.parametrize(
    "contacts",
    [
        "",
        str([MARKED_PERSON]),
        f"phone_number,name\n1,{MARKED_PERSON['name']}\n.csv",
        "x.xlsx",
        None,
        42,
    ],
)
def test_what_is_no_path_is_not_told(contacts):
    task = UploadContactsOperator(task_id="t", campaign_id="c", contacts="{{ params.contacts }}")
    task.contacts = contacts
    assert json.loads(Serde.to_json(DefaultExtractor(task).extract()))["inputs"] == []


make_session = BoundSession.__init__


def test_a_host_that_could_be_a_key_is_not_told(sandbox, monkeypatch):
    connection = {"conn_type": "voicegenie", "host": f"https://{'k3y' * 9}", "password": MARKED_KEY}
    monkeypatch.setenv("AIRFLOW_CONN_ODD", json.dumps({**connection, "extra": {"max_attempts": 1}}))
    # What the sandbox's fixture refuses: a host of another machine.
    monkeypatch.setattr(BoundSession, "__init__", make_session)
    task = StartCampaignOperator(task_id="t", campaign_id="ready", voicegenie_conn_id="odd")
    with pytest.raises(VoiceGenieRetryException, match="CONNECTION_FAILED"):
        run(task)
    lineage = told(task, "failure")
    assert names(lineage["outputs"]) == [("voicegenie://odd", "ready")]
    assert "k3y" not in json.dumps(lineage)


@pytest.mark.timeout(600)
def test_nothing_is_imported_where_a_dag_file_is_parsed():
    script = """
import sys
from airflow_provider_voicegenie.operators import campaign, contacts
from airflow_provider_voicegenie.sensors import campaign as sensors
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator
contacts.UploadContactsOperator(task_id="t", campaign_id="c", contacts="x.csv")
# Airflow itself loads what the provider says of itself.
names = ("openlineage", "airflow.providers.openlineage.extractors", "airflow_provider_voicegenie.lineage")
print("LOADED", [name for name in sys.modules if name.startswith(names)])
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "LOADED []" in printed


def test_a_file_in_the_home_folder(sandbox, people, monkeypatch):
    monkeypatch.setenv("HOME", str(people.parent))
    campaign_id = sandbox.add_campaign(total_count=0).id
    upload = UploadContactsOperator(task_id="t", campaign_id=campaign_id, contacts=f"~/{people.name}")
    export = CallHistoryToObjectStorageOperator(task_id="t", campaign_id="completed", path="~/calls.csv")
    assert names(told(run(upload))["inputs"]) == [("file", str(people))]
    assert ("file", f"{people.parent}/calls.csv") in names(told(run(export))["outputs"])
