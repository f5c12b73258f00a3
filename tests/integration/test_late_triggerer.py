# SPDX-License-Identifier: Apache-2.0
"""A late triggerer finds that another one has ended a wait; the campaign goes on, as no user ended the task."""

from __future__ import annotations

import time
from textwrap import dedent

import pytest
from services import AIRFLOW_VERSION, Services, wait_for

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="Airflow tells no trigger that it is ended"),
]

TASKS = ("stalls", "stalls_too")

DAG = """
from datetime import datetime, timezone
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG("late", schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
    # Two share the list, which a triggerer reads at once; then it is silent for a while.
    for task_id in ("stalls", "stalls_too"):
        StartCampaignOperator(
            task_id=task_id,
            campaign_id=task_id,
            wait_for_completion=True,
            deferrable=True,
            poll_interval=120,
            stall_timeout=10,
        )
"""


def test_a_late_triggerer_pauses_nothing_when_another_one_has_ended_the_wait(airflow, voicegenie_sandbox, tmp_path):
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "dag.py").write_text(dedent(DAG))
    voicegenie_sandbox.speed = 1e-6
    for task in TASKS:
        voicegenie_sandbox.add_campaign(id=task, total_count=10**6)

    def states():
        return {state for (state,) in airflow.query("SELECT state FROM task_instance")}

    with Services(airflow, kills=True) as services:
        services.start("scheduler")
        services.start("triggerer", known_as="late")
        wait_for("the deferral", lambda: states() == {"deferred"})
        wait_for("a look by the first triggerer", lambda: voicegenie_sandbox.request_count("list"))
        time.sleep(12)
        services.freeze("late")
        services.start("triggerer", known_as="punctual")
        wait_for("the end of the waits by the second one", lambda: states() == {"failed"})
        assert voicegenie_sandbox.request_count("pause") == 0
        services.thaw("late")
        told = "no user ended this task; another triggerer follows it, or has done so to its end"

        def has_looked(task):
            logs = (airflow.home / "logs").glob(f"**/task_id={task}/*.trigger.*.log")
            return any(told in log.read_text() for log in logs)

        wait_for("the late one", lambda: all(map(has_looked, TASKS)))
    assert b"CAMPAIGN_STALLED" in airflow.everything_kept()
    assert voicegenie_sandbox.request_count("pause") == 0
    assert {voicegenie_sandbox.status(task) for task in TASKS} == {"running"}
