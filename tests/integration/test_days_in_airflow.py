# SPDX-License-Identifier: Apache-2.0
"""Calling hours that are waited for, a campaign that is kept paused, and a quota, across the death of a triggerer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from services import IS_AIRFLOW_2, wait_for

pytestmark = pytest.mark.airflow

DAG = """
from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import CallingHours, PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor, HasQuota

hours = CallingHours({start!r}, {end!r}, "UTC", over_midnight=True)
soon = dict(
    calling_hours=[CallingHours({end!r}, {later!r}, "UTC", over_midnight=True), hours],
    outcomes={{"OUTSIDE_CALLING_HOURS": "wait"}},
)
once = dict(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), max_active_tasks=50)
with DAG({dag_id!r}, **once):
    for task_id in {starts}:
        StartCampaignOperator(
            task_id=task_id,
            campaign_id={dag_id!r} + task_id,
            deferrable=task_id != "in_worker",
            execution_timeout=timedelta(seconds={lead} / 2) if task_id == "out_of_time" else None,
            **soon,
        )
    PauseCampaignOperator(
        task_id="kept",
        campaign_id={dag_id!r} + "kept",
        keep_paused_for=timedelta(seconds=2 * {lead}),
        poll_interval=0.5,
        deferrable=True,
    )
    if {is_first}:
        StartCampaignOperator(
            task_id="checked", campaign_id="checked", check_only="{{{{ 'true' }}}}", deferrable=True
        )
        CampaignReadySensor(
            task_id="quota",
            campaign_id="checked",
            prerequisites=[HasQuota(calls=1)],
            poke_interval=0.5,
            deferrable=True,
        )
"""

#: In how many seconds the hours open. If the tasks do not wait by then, as the machine is busy, the next one is tried.
LEADS = (25, 60, 150, 400)

ENDED = ("success", "failed")
STARTS = ["opened", "out_of_time", *([] if IS_AIRFLOW_2 else ["in_worker", "marked"])]


def waits(shared, dag_id, task):
    """Whether a task waits for the hours."""
    if task == "in_worker":
        return "OUTSIDE_CALLING_HOURS: the task waits" in shared.logs(dag_id, task)
    return shared.state(dag_id, task) == "deferred"


def fail(shared, dag_id, task):
    """Mark a task as failed."""
    ((run_id,),) = shared.query("SELECT run_id FROM dag_run WHERE dag_id = ?", dag_id)
    path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task}"
    shared.services.request("PATCH", path, new_state="failed")


def all_wait_across_the_death_of_a_triggerer(shared, dag_id, opening, others):
    """Let all tasks wait, a triggerer die, and another one go on; return whether the hours had not opened by then."""

    def is_late():
        return datetime.now(UTC) > opening - timedelta(seconds=1)

    def is_failed(task):
        return shared.state(dag_id, task) == "failed"

    for task in STARTS:  # `out_of_time` may be over by now
        wait_for(f"{task} to wait", lambda task=task: is_late() or waits(shared, dag_id, task) or is_failed(task))
    for task in ("kept", *others):
        wait_for(f"deferral of {task}", lambda task=task: shared.state(dag_id, task) == "deferred")
    shared.services.kill("triggerer")
    if not IS_AIRFLOW_2:
        fail(shared, dag_id, "marked")
    shared.services.start("triggerer")
    return not is_late()


def is_paused_again(shared, dag_id):
    """Let the campaign start itself, as it does each morning; return whether the task pauses it again."""
    campaign_id = f"{dag_id}kept"
    shared.sandbox.sandbox.store.change(campaign_id, status="running")
    pauses = lambda: shared.sandbox.request_count("pause", campaign_id)  # noqa: E731
    wait_for("another pause", lambda: pauses() == 2 or shared.state(dag_id, "kept") in ENDED)
    return pauses() == 2


def test_hours_pauses_and_quotas(shared):
    sandbox = shared.sandbox
    calls = sandbox.sandbox.quota.calls
    calls.used = calls.limit
    sandbox.add_campaign(id="checked", total_count=1250)
    first, others = f"days_{LEADS[0]}", ["quota"]
    for lead in LEADS:
        dag_id = f"days_{lead}"
        for task in STARTS:
            sandbox.add_campaign(id=f"{dag_id}{task}", total_count=1250)
        sandbox.add_campaign(id=f"{dag_id}kept", status="running", total_count=10**6)
        opening = datetime.now(UTC) + timedelta(seconds=lead)
        clocks = [(opening + timedelta(hours=hours)).time().isoformat() for hours in range(3)]
        hours = dict(zip(("start", "end", "later"), clocks, strict=True))
        shared.add_dags(dag_id, DAG.format(dag_id=dag_id, is_first=dag_id == first, starts=STARTS, lead=lead, **hours))
        in_time = all_wait_across_the_death_of_a_triggerer(shared, dag_id, opening, others)
        if in_time and is_paused_again(shared, dag_id):
            break
        others = []
    else:
        pytest.fail(f"the tasks did not wait before the hours opened, not even {LEADS[-1]} seconds before")

    wait_for("the check", lambda: shared.state(first, "checked") == "success")
    calls.used = 0
    wait_for("the quota", lambda: shared.state(first, "quota") == "success")
    for task in (*STARTS, "kept"):
        wait_for(f"the end of {task}", lambda task=task: shared.state(dag_id, task) in ENDED)

    started = {"opened", *([] if IS_AIRFLOW_2 else ["in_worker"])}
    assert {task for task in STARTS if shared.state(dag_id, task) == "success"} == started
    assert {task: sandbox.start_count(f"{dag_id}{task}") for task in STARTS} == {
        task: int(task in started) for task in STARTS
    }
    starts = [r for r in list(sandbox.sandbox.requests) if r.operation == "start" and r.campaign_id.startswith(dag_id)]
    assert all(request.at >= opening.replace(microsecond=0) for request in starts)
    if not IS_AIRFLOW_2:  # which ends it by itself
        assert "execution_timeout was over before the campaign could be started" in shared.logs(dag_id)
    paused = {request.campaign_id for request in list(sandbox.sandbox.requests) if request.operation == "pause"}
    assert all(campaign_id.endswith("kept") for campaign_id in paused)
    assert sandbox.request_count("pause", f"{dag_id}kept") == 2
    (kept,) = shared.returned("kept", dag_id)
    assert (kept["status"], kept["paused_again"]) == ("paused", 1)
    (checked,) = shared.returned("checked", first)
    assert (checked["started_by_task"], checked["check_only"]) == (False, True)
    assert "would start it: 1,250 contacts, script set, no calling hours set." in shared.logs(first)
