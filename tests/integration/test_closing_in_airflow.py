# SPDX-License-Identifier: Apache-2.0
"""Hours close while campaigns run, and a triggerer is killed then; one campaign goes on at the next opening."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from services import wait_for
from throwaway import AIRFLOW_VERSION

pytestmark = pytest.mark.airflow

DAG = """
from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator

today, tomorrow = CallingHours({opened!r}, {closing!r}, "UTC"), CallingHours({opening!r}, {later!r}, "UTC")
once = dict(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc))
with DAG({dag_id!r}, **once):
    for task_id in {tasks}:
        StartCampaignOperator(
            task_id=task_id,
            campaign_id={dag_id!r} + task_id,
            calling_hours=[today, tomorrow] if task_id == "days" else today,
            at_closing="pause_and_resume" if task_id == "days" else "pause",
            wait_for_completion=True,
            deferrable=task_id != "in_worker",
            poll_interval=5 if task_id == "days" else 3600,
            # The last, as Airflow 2 with SQLite runs one task at a time.
            priority_weight=1 if task_id == "in_worker" else 2,
        )
"""

#: In how many seconds the hours close. If the campaigns do not run by then, as the machine is busy, the next is tried.
LEADS = (30, 90, 240, 600)
TASKS = ["in_worker", "deferred", *(["days"] if AIRFLOW_VERSION >= (3, 3) else [])]


def test_campaigns_are_paused_at_closing_and_one_goes_on_at_opening(shared):
    sandbox = shared.sandbox

    def waits(dag_id, task):
        state = shared.state(dag_id, task)
        wanted = "running" if task == "in_worker" else "deferred"
        return sandbox.start_count(f"{dag_id}{task}") == 1 and state == wanted

    for lead in LEADS:
        dag_id = f"closing_{lead}"
        for task in TASKS:
            sandbox.add_campaign(id=f"{dag_id}{task}", total_count=10**6)
        closing = datetime.now(UTC) + timedelta(seconds=lead)
        times = [closing + timedelta(seconds=seconds) for seconds in (-3600, 0, 20, 3600)]
        hours = dict(zip(("opened", "closing", "opening", "later"), (t.time().isoformat() for t in times), strict=True))
        shared.add_dags(dag_id, DAG.format(dag_id=dag_id, tasks=TASKS, **hours))
        for task in TASKS:
            wait_for(task, lambda task=task, dag_id=dag_id, end=closing: datetime.now(UTC) > end or waits(dag_id, task))
        if datetime.now(UTC) < closing:
            break
    else:
        pytest.fail(f"the campaigns did not run before the hours closed, not even {LEADS[-1]} seconds before")

    # The triggerer dies right before, and another one comes after.
    time.sleep(max(0.0, (closing - datetime.now(UTC)).total_seconds() - 0.5))
    shared.services.kill("triggerer")
    wait_for("the pause in the worker", lambda: sandbox.status(f"{dag_id}in_worker") == "paused")
    shared.services.start("triggerer")
    for task in TASKS:
        wait_for(f"the pause of {task}", lambda task=task: sandbox.request_count("pause", f"{dag_id}{task}"))
    for task in ("in_worker", "deferred"):
        wait_for(f"the end of {task}", lambda task=task: shared.state(dag_id, task) == "failed")
    assert shared.logs(dag_id).count("its calling hours are over, so it was paused") >= 2
    if "days" in TASKS:
        wait_for("the start at the opening", lambda: sandbox.start_count(f"{dag_id}days") == 2)
    requests = [each for each in list(sandbox.sandbox.requests) if (each.campaign_id or "").startswith(dag_id)]
    starts = {task: sandbox.start_count(f"{dag_id}{task}") for task in TASKS}
    assert starts == {task: 2 if task == "days" else 1 for task in TASKS}
    pauses = [each for each in requests if each.operation == "pause"]
    assert sorted(each.campaign_id for each in pauses) == sorted(f"{dag_id}{task}" for task in TASKS)
    assert all(each.at >= closing.replace(microsecond=0) for each in pauses)
    again = [each for each in requests if each.operation == "start"][len(TASKS) :]
    assert all(each.at >= times[2].replace(microsecond=0) for each in again)
