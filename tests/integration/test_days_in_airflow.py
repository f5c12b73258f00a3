# SPDX-License-Identifier: Apache-2.0
"""Calling hours that are waited for, a campaign that is kept paused, and a quota, across the death of a triggerer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from textwrap import dedent

import pytest
from services import IS_AIRFLOW_2, Services, wait_for

pytestmark = pytest.mark.airflow

DAG = """
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import CallingHours, PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor, HasQuota

hours = CallingHours({start!r}, {end!r}, "UTC")
soon = dict(
    calling_hours=[CallingHours({end!r}, {later!r}, "UTC"), hours], outcomes={{"OUTSIDE_CALLING_HOURS": "wait"}}
)
once = dict(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), max_active_tasks=50)
with DAG("days", **once):
    for task_id in {starts}:
        StartCampaignOperator(
            task_id=task_id,
            campaign_id=task_id,
            deferrable=task_id != "in_worker",
            execution_timeout=timedelta(seconds=20) if task_id == "out_of_time" else None,
            **soon,
        )
    PauseCampaignOperator(
        task_id="kept", campaign_id="kept", keep_paused_for=timedelta(seconds=90), poll_interval=0.5, deferrable=True
    )
    StartCampaignOperator(task_id="checked", campaign_id="checked", check_only="{{{{ 'true' }}}}", deferrable=True)
    CampaignReadySensor(
        task_id="quota", campaign_id="checked", prerequisites=[HasQuota(calls=1)], poke_interval=0.5, deferrable=True
    )
"""


def state(airflow, task_id):
    rows = airflow.query("SELECT state FROM task_instance WHERE task_id = ?", task_id)
    return rows[0][0] if rows else None


def test_hours_pauses_and_quotas(airflow, voicegenie_sandbox, tmp_path):
    starts = ["opened", "out_of_time", *([] if IS_AIRFLOW_2 else ["in_worker", "marked"])]
    opening = datetime.now(UTC) + timedelta(seconds=75)
    clocks = [(opening + timedelta(hours=hours)).time().isoformat() for hours in range(3)]
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "dag.py").write_text(
        dedent(DAG).format(start=clocks[0], end=clocks[1], later=clocks[2], starts=starts)
    )
    for campaign_id in (*starts, "checked"):
        voicegenie_sandbox.add_campaign(id=campaign_id, total_count=1250)
    voicegenie_sandbox.add_campaign(id="kept", status="running", total_count=10**6)
    calls = voicegenie_sandbox.sandbox.quota.calls
    calls.used = calls.limit
    deferred = [task for task in (*starts, "kept", "quota") if task != "in_worker"]

    with Services(airflow, kills=True) as services:
        services.start("scheduler")
        services.start("triggerer")
        for task in deferred:
            wait_for(f"deferral of {task}", lambda task=task: state(airflow, task) == "deferred")
        services.kill("triggerer")
        if not IS_AIRFLOW_2:
            ((run_id,),) = airflow.query("SELECT run_id FROM dag_run WHERE dag_id = 'days'")
            services.request("PATCH", f"dags/days/dagRuns/{run_id}/taskInstances/marked", new_state="failed")
        services.start("triggerer")
        wait_for("the check", lambda: state(airflow, "checked") == "success")
        # It starts itself, as it does each morning.
        voicegenie_sandbox.sandbox.store.change("kept", status="running")
        wait_for("another pause", lambda: voicegenie_sandbox.status("kept") == "paused")
        calls.used = 0
        wait_for("the quota", lambda: state(airflow, "quota") == "success")
        for task in (*(each for each in starts if each != "marked"), "kept"):
            wait_for(f"the end of {task}", lambda task=task: state(airflow, task) in ("success", "failed"))
    times = [r for r in list(voicegenie_sandbox.sandbox.requests) if r.operation == "start"]
    assert {request.campaign_id for request in times} == {"opened", *([] if IS_AIRFLOW_2 else ["in_worker"])}
    assert len(times) == (1 if IS_AIRFLOW_2 else 2)
    assert all(request.at >= opening.replace(microsecond=0) for request in times)
    assert state(airflow, "out_of_time") == "failed"
    if not IS_AIRFLOW_2:  # which ends it by itself
        assert b"execution_timeout was over before the campaign could be started" in airflow.everything_kept()
    assert voicegenie_sandbox.request_count("pause") == voicegenie_sandbox.request_count("pause", "kept") == 2
    (checked,) = airflow.returned("checked")
    assert (checked["started_by_task"], checked["check_only"]) == (False, True)
    assert b"would start it: 1,250 contacts, script set, no calling hours set." in airflow.everything_kept()
    (kept,) = airflow.returned("kept")
    assert (kept["status"], kept["paused_again"]) == ("paused", 1)
