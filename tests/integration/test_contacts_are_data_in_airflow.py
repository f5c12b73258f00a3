# SPDX-License-Identifier: Apache-2.0
"""Rows that an upstream task returns are never rendered, in whatever way they come to the upload."""

from __future__ import annotations

import json
from textwrap import dedent

import pytest
from helpers.leaks import person_in

pytestmark = pytest.mark.airflow

#: What one who can write a name into a table would write: each is a template, and the last one is a broken one.
NAMES = ["{{ conn.voicegenie_default.password }}", "{{ var.value.region }}", "Xaverine {% Quastenflosser"]

DAG = """
from airflow.providers.common.compat.sdk import DAG, task
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator

NAMES = {names!r}


def rows(first):
    return [{{"phone_number": f"+4915551{{first + i:04}}", "name": name, "note": name}} for i, name in enumerate(NAMES)]


with DAG("upload", schedule=None):
    @task
    def extract():
        return rows(100)

    @task
    def extract_lists():
        return [rows(200), rows(300)]

    @task
    def extract_arguments():
        return [{{"campaign_id": "filled", "contacts": rows(400)}}]

    common = dict(campaign_id="filled")
    UploadContactsOperator(task_id="output", contacts=extract(), **common)
    UploadContactsOperator(task_id="each_list", contacts=extract_lists().map(lambda rows: rows), **common)
    UploadContactsOperator.partial(task_id="expand", **common).expand(contacts=extract_lists())
    UploadContactsOperator.partial(task_id="kwargs").expand_kwargs(extract_arguments())
    UploadContactsOperator.partial(task_id="changed").expand_kwargs(
        extract_arguments().map(lambda arguments: {{**arguments, "contacts": rows(500)}})
    )
    UploadContactsOperator(task_id="literal", contacts=rows(600), **common)
"""

#: Gives rows as objects of its own.
BACKEND = """
from collections import UserList
try:
    from airflow.sdk.bases.xcom import BaseXCom
except ImportError:
    from airflow.models.xcom import BaseXCom


class Backend(BaseXCom):
    @staticmethod
    def deserialize_value(result):
        value = BaseXCom.deserialize_value(result)
        if isinstance(value, list) and "contacts" in value[0]:
            return [{**each, "contacts": UserList(each["contacts"])} for each in value]
        return UserList(value) if isinstance(value, list) else value
"""


@pytest.mark.parametrize("backend", [False, True], ids=["usual", "custom backend"])
def test_rows_of_every_origin_are_sent_as_they_are(airflow, voicegenie_sandbox, tmp_path, monkeypatch, backend):
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "dag.py").write_text(dedent(DAG).format(names=NAMES))
    airflow.environment["AIRFLOW_VAR_REGION"] = "a-variable"
    if backend:
        (tmp_path / "backend_of_tests.py").write_text(BACKEND)
        airflow.environment["PYTHONPATH"] = str(tmp_path)
        airflow.environment["AIRFLOW__CORE__XCOM_BACKEND"] = "backend_of_tests.Backend"
    voicegenie_sandbox.add_campaign(id="filled", total_count=0)
    sent = []
    upload = voicegenie_sandbox.sandbox.store.upload

    def note(campaign_id, contacts):
        sent.extend(contacts)
        return upload(campaign_id, contacts)

    monkeypatch.setattr(voicegenie_sandbox.sandbox.store, "upload", note)
    states = airflow.test_dag("upload")
    uploads = {task: state for task, state in states.items() if not task.startswith("extract")}
    # The rows of `each_list` are lists, which are no contacts.
    assert uploads.pop("each_list") == "failed"
    assert set(uploads.values()) == {"success"}, uploads
    assert set(uploads) == {"output", "expand[0]", "expand[1]", "kwargs[0]", "changed[0]", "literal"}
    assert [contact["name"] for contact in sent] == NAMES * len(uploads)
    assert all(contact["custom_fields"] == {"note": contact["name"]} for contact in sent)
    rendered = airflow.query("SELECT rendered_fields FROM rendered_task_instance_fields")
    shown = json.dumps([fields for (fields,) in rendered if "which are not shown" in str(fields)])
    assert shown.count("<3 rows, which are not shown>") == len(uploads)
    assert person_in(shown) is None
    logs = b"".join(path.read_bytes() for path in airflow.home.rglob("*.log"))
    assert b"Exception rendering" not in logs
