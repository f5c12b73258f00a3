# SPDX-License-Identifier: Apache-2.0
"""The process of a task is killed at each step of a start: its campaign is started once, and the task goes on."""

from __future__ import annotations

import os
import signal
from textwrap import dedent

import pytest
from services import AIRFLOW_VERSION, Services, wait_for

pytestmark = pytest.mark.airflow

#: Airflow 3.0 fails a task whose process is killed, whatever retries it has.
RETRIES_KILLED_TASKS = AIRFLOW_VERSION != (3, 0)
HAS_TASK_STATE_STORE = AIRFLOW_VERSION >= (3, 3)

#: Each task is named after the step at which it stops, the first time, until it is killed.
DAG = """
import os
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator


def stop(step, campaign_id):
    reached = Path(os.environ["REACHED"]) / step
    if campaign_id == step and not reached.exists():
        reached.touch()
        time.sleep(300)


class Stopping(StartCampaignOperator):
    def execute(self, context):
        from airflow_provider_voicegenie.start.record import OwnStart

        add, set_phase, campaign_id = OwnStart.add_record, OwnStart.set_phase, self.campaign_id

        def slow_add(records, *arguments):
            stop("before_record", campaign_id)
            add(records, *arguments)
            stop("after_record", campaign_id)

        def slow_set_phase(records, *arguments, **more):
            stop("after_response", campaign_id)
            set_phase(records, *arguments, **more)
            stop("after_phase", campaign_id)

        OwnStart.add_record, OwnStart.set_phase = slow_add, slow_set_phase
        result = super().execute(context)
        stop("before_xcom", campaign_id)
        return result


once = dict(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), max_active_tasks=50)
with DAG("crashes", **once):
    for step in {steps}:
        Stopping(
            task_id=step,
            campaign_id=step,
            wait_for_completion=step == "waiting",
            poll_interval=0.5,
            retries=3,
            retry_delay=timedelta(seconds=1),
        )
"""

IN_THE_TASK = ("before_record", "after_record", "after_response", "after_phase", "before_xcom")
AT_THE_SERVICE = {"sent": False, "acted": True, "paused_since": True, "completed_since": True}
STEPS = (*IN_THE_TASK, *AT_THE_SERVICE, "waiting")


def test_a_task_that_is_killed_at_any_step_starts_its_campaign_once(airflow, voicegenie_sandbox, tmp_path):
    reached = tmp_path / "reached"
    reached.mkdir()
    airflow.environment["REACHED"] = str(reached)
    airflow.environment["AIRFLOW_CONN_VOICEGENIE_DEFAULT"] = voicegenie_sandbox.connection(timeout=200)
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "dag.py").write_text(dedent(DAG).replace("{steps}", repr(STEPS)))
    for step in STEPS:
        voicegenie_sandbox.add_campaign(id=step, total_count=10**6)
    for step, has_acted in AT_THE_SERVICE.items():
        voicegenie_sandbox.inject("hold", "start", campaign_id=step, after_acting=has_acted)

    def is_reached(step):
        if step in IN_THE_TASK:
            return (reached / step).exists()
        if step == "waiting":
            return voicegenie_sandbox.request_count("get", step) >= 3
        acted = [
            r.acted
            for r in list(voicegenie_sandbox.sandbox.requests)
            if (r.operation, r.campaign_id) == ("start", step)
        ]
        return acted == [AT_THE_SERVICE[step]]

    def ended(step):
        ((state, tries),) = airflow.query("SELECT state, try_number FROM task_instance WHERE task_id = ?", step)
        return state in ("success", "failed", "skipped") and (state, tries)

    with Services(airflow) as services:
        services.start("scheduler")
        left = set(STEPS)

        def next_one():
            return next((step for step in sorted(left) if is_reached(step)), None)

        while left:
            step = wait_for(f"one of {left}", next_one)
            left.remove(step)
            if step.endswith("_since"):
                voicegenie_sandbox.sandbox.store.change(step, status=step.removesuffix("_since"))
            ((pid,),) = airflow.query("SELECT pid FROM task_instance WHERE task_id = ?", step)
            os.kill(pid, signal.SIGKILL)
            if step == "waiting":
                voicegenie_sandbox.sandbox.store.change(step, status="completed")
        endings = {step: wait_for(f"the end of {step}", lambda step=step: ended(step)) for step in STEPS}
    starts = {step: voicegenie_sandbox.start_count(step) for step in STEPS}
    assert voicegenie_sandbox.request_count("pause") == 0
    assert (b"voicegenie_task" in airflow.everything_kept()) == HAS_TASK_STATE_STORE
    if not RETRIES_KILLED_TASKS:
        assert {state for state, _ in endings.values()} == {"failed"}
        assert starts == {step: int(step not in ("before_record", "after_record", "sent")) for step in STEPS}
        return
    assert {state for state, _ in endings.values()} == {"success"}
    assert min(tries for _, tries in endings.values()) == 2
    assert starts == dict.fromkeys(STEPS, 1)
    results = {step: airflow.returned(step)[0] for step in STEPS}
    assert {step: results[step]["started_by_task"] for step in STEPS} == dict.fromkeys(STEPS, True)
    assert (results["paused_since"]["status"], voicegenie_sandbox.status("paused_since")) == ("paused", "paused")
    assert results["completed_since"]["status"] == "completed"
    assert results["waiting"]["statistics"]["total_contacts"] == 10**6
