# SPDX-License-Identifier: Apache-2.0
"""Hours close while campaigns run, and a triggerer is killed then; one campaign goes on at the next opening."""

from __future__ import annotations

import os
import signal
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

today = CallingHours({opened!r}, {closing!r}, "UTC", over_midnight=True)
tomorrow = CallingHours({opening!r}, {later!r}, "UTC", over_midnight=True)
once = dict(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc))
with DAG({dag_id!r}, **once):
    for task_id, is_in_worker in {tasks}.items():
        StartCampaignOperator(
            task_id=task_id,
            campaign_id={dag_id!r} + task_id,
            calling_hours=[today, tomorrow] if task_id == "days" else today,
            at_closing="pause_and_resume" if task_id == "days" else "pause",
            wait_for_completion=True,
            deferrable=not is_in_worker,
            poll_interval=5 if task_id == "days" else 3600,
            # The last, as Airflow 2 with SQLite runs one task at a time.
            priority_weight=1 if is_in_worker else 2,
        )
"""

#: Each task is named after the step at which its process stops, until it is killed.
CRASHING = """
import os
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator


def stop(step, campaign_id):
    reached = Path({folder!r}) / campaign_id
    if campaign_id.endswith(step) and not reached.exists():
        reached.touch()
        time.sleep(600)


class Stopping(StartCampaignOperator):
    def _begin(self, context, *arguments):
        from airflow_provider_voicegenie.start.record import OwnStart

        add = OwnStart.add_record

        def slow_add(own, *arguments):
            if own.hours.get("pauses"):
                stop("before_record", own.campaign_id)
            add(own, *arguments)
            if own.hours.get("pauses"):
                stop("after_record", own.campaign_id)

        OwnStart.add_record = slow_add
        return super()._begin(context, *arguments)


today = CallingHours({opened!r}, {closing!r}, "UTC", over_midnight=True)
tomorrow = CallingHours({opening!r}, {later!r}, "UTC", over_midnight=True)
once = dict(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc))
with DAG({dag_id!r}, **once):
    for task_id, is_in_worker in {tasks}.items():
        Stopping(
            task_id=task_id,
            campaign_id={dag_id!r} + task_id,
            calling_hours=[today, tomorrow],
            at_closing="pause_and_resume",
            wait_for_completion=True,
            deferrable=not is_in_worker,
            poll_interval=1,
            retries=3,
            retry_delay=timedelta(seconds=1),
        )
"""
#: Step -> whether its task waits in a worker.
AT_THE_PAUSE = {"pause_not_acted": True, "pause_acted": True}
AT_THE_OPENING = {"before_record": False, "after_record": False, "start_not_acted": False, "start_acted": False}

#: In how many seconds the hours close. If the campaigns do not run by then, as the machine is busy, the next is tried.
LEADS = (30, 90, 240, 600)
#: Task -> whether it waits in a worker.
TASKS = {"in_worker": True, "deferred": False} | ({"days": False} if AIRFLOW_VERSION >= (3, 3) else {})


def run_until_closing(shared, name, dag, tasks):
    """Let campaigns run when their hours close; return the DAG's id, and when the hours close and open again."""
    sandbox = shared.sandbox

    def waits(dag_id, task, is_in_worker):
        wanted = "running" if is_in_worker else "deferred"
        return sandbox.start_count(f"{dag_id}{task}") == 1 and shared.state(dag_id, task) == wanted

    for lead in LEADS:
        dag_id = f"{name}_{lead}"
        for task in tasks:
            sandbox.add_campaign(id=f"{dag_id}{task}", total_count=10**6)
        closing = datetime.now(UTC) + timedelta(seconds=lead)
        times = [closing + timedelta(seconds=seconds) for seconds in (-3600, 0, 20, 3600)]
        hours = dict(zip(("opened", "closing", "opening", "later"), (t.time().isoformat() for t in times), strict=True))
        shared.add_dags(dag_id, dag.format(dag_id=dag_id, tasks=tasks, **hours))
        for task, is_in_worker in tasks.items():
            wait_for(
                task, lambda args=(dag_id, task, is_in_worker), end=closing: datetime.now(UTC) > end or waits(*args)
            )
        if datetime.now(UTC) < closing:
            return dag_id, closing, times[2]
    return pytest.fail(f"the campaigns did not run before the hours closed, not even {LEADS[-1]} seconds before")


def test_campaigns_are_paused_at_closing_and_one_goes_on_at_opening(shared):
    sandbox = shared.sandbox
    dag_id, closing, opening = run_until_closing(shared, "closing", DAG, TASKS)

    # The triggerer dies right before, and another one comes after.
    time.sleep(max(0.0, (closing - datetime.now(UTC)).total_seconds() - 0.5))
    shared.services.kill("triggerer")
    wait_for("the pause in the worker", lambda: sandbox.status(f"{dag_id}in_worker") == "paused")
    shared.services.start("triggerer")

    def made(operation, task):
        requests = list(sandbox.sandbox.requests)
        return [each for each in requests if (each.operation, each.campaign_id) == (operation, f"{dag_id}{task}")]

    for task in ("in_worker", "deferred"):
        wait_for(f"the pause of {task}", lambda task=task: made("pause", task))
        wait_for(f"the end of {task}", lambda task=task: shared.state(dag_id, task) == "failed")
    assert shared.logs(dag_id).count("its calling hours are over, so it was paused") >= 2
    is_paused = {"in_worker": True, "deferred": True}
    if "days" in TASKS:
        # The other triggerer comes while the hours are closed, or else, on a slow machine, once they are open again.
        settled = opening + timedelta(seconds=10)
        wait_for(
            "the pause of days, or a look at it in its next hours",
            lambda: made("pause", "days") or any(each.at > settled for each in made("get", "days")),
        )
        is_paused["days"] = bool(made("pause", "days"))
        if is_paused["days"]:
            wait_for("the start at the opening", lambda: len(made("start", "days")) == 2)
        # A user ends it in the wait of its second day: what the triggerer noted of the first one must not hide that.
        wait_for("the second wait", lambda: shared.state(dag_id, "days") == "deferred")
        seen = len(sandbox.sandbox.requests)
        wait_for("a poll", lambda: len(sandbox.sandbox.requests) > seen)
        ((run_id,),) = shared.query("SELECT run_id FROM dag_run WHERE dag_id = ?", dag_id)
        shared.services.request("PATCH", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/days", new_state="failed")
        wait_for("the pause after the kill", lambda: sandbox.status(f"{dag_id}days") == "paused")
    for task, was_paused in is_paused.items():
        pauses, starts = made("pause", task), made("start", task)
        assert len(pauses) == was_paused + (task == "days")
        assert len(starts) == (2 if task == "days" and was_paused else 1)
        assert all(each.at >= closing.replace(microsecond=0) for each in pauses)
        assert all(each.at >= opening.replace(microsecond=0) for each in starts[1:])


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 3), reason="needs an Airflow that keeps what was paused")
def test_a_task_that_is_killed_at_closing_or_opening_starts_its_campaign_once_for_each(shared, tmp_path):
    sandbox, steps = shared.sandbox, AT_THE_PAUSE | AT_THE_OPENING
    # No call of before the pause ends while a start at the opening is judged.
    sandbox.speed = 30
    dag = CRASHING.replace("{folder!r}", repr(str(tmp_path)))
    dag_id, _, opening = run_until_closing(shared, "crashing", dag, steps)
    held = [step for step in steps if step.endswith("acted")]
    for step in held:
        operation, is_acted = step.split("_")[0], "_not_" not in step
        sandbox.inject("hold", operation, campaign_id=f"{dag_id}{step}", after_acting=is_acted)

    def requests(step, operation):
        made = list(sandbox.sandbox.requests)
        return [each for each in made if (each.operation, each.campaign_id) == (operation, f"{dag_id}{step}")]

    def is_reached(step):
        if step not in held:
            return (tmp_path / f"{dag_id}{step}").exists()
        operation, expected = step.split("_")[0], "_not_" not in step
        made = requests(step, operation)
        return len(made) == (2 if operation == "start" else 1) and made[-1].acted == expected

    left = set(steps)
    while left:
        step = wait_for(f"one of {left}", lambda: next((step for step in sorted(left) if is_reached(step)), None))
        left.remove(step)
        query = "SELECT pid FROM task_instance WHERE dag_id = ? AND task_id = ?"
        ((pid,),) = shared.query(query, dag_id, step)
        os.kill(pid, signal.SIGKILL)

    def starts(step):
        return sum(bool(each.acted) for each in requests(step, "start"))

    for step in AT_THE_OPENING:
        wait_for(f"the second start of {step}", lambda step=step: starts(step) == 2)
    # Nobody can say who paused it, so it is left as it is.
    wait_for("the end of a task whose pause is not on record", lambda: shared.state(dag_id, "pause_acted") == "failed")
    # Its next try pauses it, or comes after the opening.
    retried = "pause_not_acted"
    wait_for("the next try of the other", lambda: len(requests(retried, "pause")) > 1 or datetime.now(UTC) > opening)
    for step in set(steps) - {"pause_acted"}:
        campaign_id = f"{dag_id}{step}"
        wait_for(f"{step} to run", lambda campaign_id=campaign_id: sandbox.status(campaign_id) == "running")
        sandbox.sandbox.store.change(campaign_id, status="completed")
        wait_for(f"the end of {step}", lambda step=step: shared.state(dag_id, step) == "success")
    assert sandbox.status(f"{dag_id}pause_acted") == "paused"
    for step in steps:
        paused = sum(bool(each.acted) for each in requests(step, "pause"))
        assert (step, starts(step)) == (step, 1 if step == "pause_acted" else 1 + paused)
        assert all(each.at >= opening.replace(microsecond=0) for each in requests(step, "start")[1:])
    assert "CALLING_HOURS_OVER" in shared.logs(dag_id, "pause_acted")
