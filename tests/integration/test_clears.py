# SPDX-License-Identifier: Apache-2.0
"""Tasks that a user clears, in one real Airflow: each clear is a clear, and nothing else is one."""

from __future__ import annotations

import os
import signal
from textwrap import dedent

import pytest
from services import AIRFLOW_VERSION, Services, wait_for

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="it tells no trigger of a clear"),
]

IN_WORKER = [f"worker-{number}" for number in range(6)]
DEFERRED = ["deferred-0", "deferred-1"]

DAGS = """
from datetime import datetime, timedelta, timezone
from pathlib import Path
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator

# Many, as Airflow itself may fail a try on a busy machine, before the task begins.
often = dict(retries=20, retry_delay=timedelta(seconds=1))
wait = dict(wait_for_completion=True, poll_interval=0.5, **often)

with DAG("clears", schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), max_active_tasks=50):
    for task_id in {tasks}:
        StartCampaignOperator(
            task_id=task_id, campaign_id=task_id, deferrable=not task_id.startswith("worker"), **wait
        )
    StartCampaignOperator(
        task_id="switched", campaign_id="{{{{ var.value.whose }}}}switched", deferrable=True, **wait
    )
    StartCampaignOperator(
        task_id="lowered",
        campaign_id="lowered",
        **{{**often, "retries": int((Path(__file__).parent / "retries").read_text())}},
    )
    UploadContactsOperator(
        task_id="upload",
        campaign_id="{{{{ var.value.whose }}}}upload",
        contacts=[{{"phone_number": f"+49151100000{{number}}"}} for number in range(10, 60)],
        batch_size=1,
        **often,
    )
"""


def latest(airflow, task_id):
    """Return state, number and process of a task's latest try."""
    query = "SELECT state, try_number, pid FROM task_instance WHERE task_id = ?"
    (row,) = airflow.query(query, task_id)
    return row


def state(airflow, task_id):
    return latest(airflow, task_id)[0]


def set_variable(airflow, value):
    airflow.change("DELETE FROM variable")
    airflow.change("INSERT INTO variable (key, val, is_encrypted) VALUES ('whose', ?, 0)", value)


def clear(airflow, services, *tasks):
    ((run_id,),) = airflow.query("SELECT run_id FROM dag_run WHERE dag_id = 'clears'")
    services.request(
        "POST",
        "dags/clears/clearTaskInstances",
        dry_run=False,
        only_failed=False,
        dag_run_id=run_id,
        task_ids=list(tasks),
    )


def versions(airflow):
    """Return what changes when Airflow has read a DAG file that has changed."""
    return airflow.query("SELECT dag_hash FROM serialized_dag")


def test_a_clear_is_a_clear(airflow, voicegenie_sandbox, tmp_path):
    followed = [*IN_WORKER, *DEFERRED, "held", "worker-retried"]
    for name in (*followed, "switched", "their-switched"):
        voicegenie_sandbox.add_campaign(id=name, total_count=10**6, status="scheduled")
    voicegenie_sandbox.add_campaign(id="lowered", status="scheduled")
    for name in ("upload", "their-upload"):
        voicegenie_sandbox.add_campaign(id=name, status="paused")
    set_variable(airflow, "")
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "retries").write_text("20")
    (airflow.dags / "dags.py").write_text(dedent(DAGS.format(tasks=followed)))
    airflow.environment |= {
        # All that run in workers, and some to spare.
        "AIRFLOW__CORE__PARALLELISM": "12",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "1",
    }
    # The upload is under way when it is cleared.
    voicegenie_sandbox.inject("delay", "upload", seconds=1, times=None)
    voicegenie_sandbox.inject("delay", "pause", campaign_id="held", seconds=7, times=None)
    starts = voicegenie_sandbox.start_count

    with Services(airflow) as services:
        services.start("scheduler")
        services.start("triggerer")
        for name in (*followed, "switched"):
            wait_for(f"start of {name}", lambda name=name: voicegenie_sandbox.status(name) == "running")
        for name in (*DEFERRED, "held", "switched"):
            wait_for(f"deferral of {name}", lambda name=name: state(airflow, name) == "deferred")
        wait_for("the start without a wait", lambda: state(airflow, "lowered") == "success")
        wait_for("a batch of the upload", lambda: voicegenie_sandbox.request_count("upload", "upload") > 1)
        wait_for("polls", lambda: voicegenie_sandbox.request_count("list") > 2)

        # What a user may do before: pause a campaign, change a variable, and let tasks be tried less often.
        set_variable(airflow, "their-")
        before = versions(airflow)
        _, tries, _ = latest(airflow, "lowered")
        (airflow.dags / "retries").write_text(str(20 - tries))
        wait_for("the changed DAG", lambda: versions(airflow) != before)
        for name in ("lowered", "held"):
            voicegenie_sandbox.sandbox.store.change(name, status="paused")
        clear(airflow, services, *IN_WORKER, *DEFERRED, "upload", "switched", "held", "lowered")

        for name in (*IN_WORKER, *DEFERRED, "held", "lowered"):
            wait_for(f"another start of {name}", lambda name=name: starts(name) == 2)
        wait_for("the start of another campaign", lambda: starts("their-switched") == 1)
        wait_for("the upload to another campaign", lambda: voicegenie_sandbox.request_count("upload", "their-upload"))
        wait_for("the pause of the first one", lambda: voicegenie_sandbox.status("switched") == "paused")
        for name in (*DEFERRED, "held", "switched"):
            wait_for(f"another deferral of {name}", lambda name=name: state(airflow, name) == "deferred")
        # The user left the one whose worker goes down next: the run's clear is none of its.
        _, tries, pid = latest(airflow, "worker-retried")
        os.kill(pid, signal.SIGTERM)
        wait_for("its next try", lambda: latest(airflow, "worker-retried")[1] > tries)
        polled = voicegenie_sandbox.request_count("get", "worker-retried")
        wait_for("polls of that", lambda: voicegenie_sandbox.request_count("get", "worker-retried") > polled + 3)
        wait_for(
            "what became of the pause", lambda: b"Campaign 'held': the task was cleared" in airflow.everything_kept()
        )

    for name in followed:
        assert (name, voicegenie_sandbox.status(name)) == (name, "running")
    assert (starts("worker-retried"), starts("switched")) == (1, 1)
    for name in (*IN_WORKER, *DEFERRED):
        assert (name, voicegenie_sandbox.request_count("pause", name)) == (name, 1)
    for name in ("held", "their-switched", "worker-retried"):
        assert (name, voicegenie_sandbox.request_count("pause", name)) == (name, 0)
    sent = [(request.operation, request.campaign_id) for request in voicegenie_sandbox.sandbox.requests]
    if AIRFLOW_VERSION < (3, 4):
        # From 3.4 on, Airflow forgets which campaign it was, so the task waits for some seconds only.
        assert sent.index(("pause", "switched")) < sent.index(("start", "their-switched"))
