# SPDX-License-Identifier: Apache-2.0
"""Waits in a real Airflow, whose processes are killed and restarted meanwhile."""

from __future__ import annotations

import os
import re
import signal
from textwrap import dedent

import psutil
import pytest
from services import AIRFLOW_VERSION, IS_AIRFLOW_2, Services, wait_for

pytestmark = pytest.mark.airflow

TELLS_TRIGGERS_OF_KILLS = AIRFLOW_VERSION >= (3, 3)
#: What tells that a trigger ended because another triggerer has it. From 3.4 on, Airflow sees that by itself.
ANOTHER_FOLLOWS = "dropping it without on_kill" if AIRFLOW_VERSION >= (3, 4) else "another triggerer follows it"
HAS_TASK_STATE_STORE = AIRFLOW_VERSION >= (3, 3)
#: Airflow 3.0 leaves a task that is cleared while it runs "restarting" for good.
RUNS_NO_CLEARED_TASK = AIRFLOW_VERSION == (3, 0)

HEADER = """
from datetime import datetime, timedelta, timezone
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import (
    CampaignCompletedSensor,
    CampaignReadySensor,
    HasContacts,
)

# Enough retries for tasks that a busy machine lets Airflow take for lost.
wait = dict(wait_for_completion=True, poll_interval=0.5, retries=10, retry_delay=timedelta(seconds=1))
once = dict(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), max_active_tasks=50)
"""


def write_dags(airflow, tmp_path, body):
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "dags.py").write_text(HEADER + dedent(body))


def set_variable(airflow, value):
    airflow.change("DELETE FROM variable")
    airflow.change("INSERT INTO variable (key, val, is_encrypted) VALUES ('whose', ?, 0)", value)


def let_templates_give_theirs(airflow, voicegenie_sandbox, tasks):
    """From now on, templates that name the variable `whose` give other campaigns, which someone else has started."""
    for task in tasks:
        voicegenie_sandbox.add_campaign(id=f"their-{task}", total_count=10**6, status="running")
    set_variable(airflow, "their-")


def check_that_theirs_are_left_alone(voicegenie_sandbox, tasks):
    about = {request.campaign_id for request in list(voicegenie_sandbox.sandbox.requests)}
    assert not about & {f"their-{task}" for task in tasks}


def rows(airflow, task_id):
    return airflow.query("SELECT state, try_number, pid FROM task_instance WHERE task_id = ?", task_id)


def state(airflow, task_id):
    return next((state for state, _, _ in rows(airflow, task_id)), None)


def runs_again(airflow, task_id, least_try):
    """Return a condition: the task runs, in this try or a later one."""

    def check():
        ((now, tries, _),) = rows(airflow, task_id)
        return now == "running" and tries >= least_try

    return check


OWN_CHECKS = """
from dataclasses import dataclass

from airflow_provider_voicegenie.sensors.campaign import Check, Prerequisite


@dataclass(frozen=True)
class Named(Prerequisite):
    name: str

    def check(self, campaign, now):
        return Check.met() if campaign.name == self.name else Check.waiting("another name")
"""


def test_dags_that_wait(airflow, voicegenie_sandbox, tmp_path):
    """In a worker and deferred."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "own_checks.py").write_text(OWN_CHECKS)
    airflow.environment["PYTHONPATH"] = str(modules)
    write_dags(
        airflow,
        tmp_path,
        """
        from own_checks import Named

        for way, deferrable in {"worker": False, "deferred": True}.items():
            with DAG(way, schedule=None):
                ready = CampaignReadySensor(
                    task_id="ready",
                    campaign_id=f"ready-{way}",
                    prerequisites=[HasContacts(minimum=5), Named("Spring reminder")],
                    deferrable=deferrable,
                    poke_interval=1,
                )
                start = StartCampaignOperator(
                    task_id="start",
                    campaign_id=f"ready-{way}",
                    wait_for_completion=True,
                    deferrable=deferrable,
                    poll_interval=0.5,
                )
                mapped = StartCampaignOperator.partial(
                    task_id="mapped",
                    wait_for_completion=True,
                    deferrable=deferrable,
                    poll_interval=0.5,
                    min_success_rate=100,
                    outcomes={"SUCCESS_RATE_TOO_LOW": "skip"},
                ).expand(campaign_id=[f"paused-{way}"])
                sensor = CampaignCompletedSensor(
                    task_id="sensor", campaign_id=f"followed-{way}", deferrable=deferrable, poke_interval=0.5
                )
                late = CampaignCompletedSensor(
                    task_id="late",
                    campaign_id="endless",
                    deferrable=deferrable,
                    poke_interval=0.5,
                    timeout=2,
                    soft_fail=True,
                )
                ready >> start >> sensor >> [mapped, late]
        """,
    )
    ways = ("worker", "deferred")
    voicegenie_sandbox.add_campaign(id="endless", status="running", total_count=10**8)
    for way in ways:
        voicegenie_sandbox.add_campaign(id=f"ready-{way}", name="Spring reminder", total_count=20)
        voicegenie_sandbox.add_campaign(id=f"paused-{way}", status="paused", total_count=20)
        voicegenie_sandbox.add_campaign(id=f"followed-{way}", status="running", total_count=40)
    voicegenie_sandbox.speed = 30
    airflow.run_all([["dags", "test", way, "2026-01-01T00:00:00+00:00"] for way in ways])
    for way in ways:
        assert airflow.states(way) == [
            {"ready": "success", "start": "success", "mapped[0]": "skipped", "sensor": "success", "late": "skipped"}
        ]
        (started,) = airflow.returned("start", way)
        assert (started["status"], started["started_by_task"]) == ("completed", True)
        assert started["statistics"]["total_contacts"] == 20
        assert started["completed_at"]
        (seen,) = airflow.returned("sensor", way)
        assert seen["statistics"]["total_contacts"] == 40
        assert voicegenie_sandbox.start_count(f"ready-{way}") == 1
    assert voicegenie_sandbox.request_count("pause") == 0
    assert b"calls done" in airflow.everything_kept()


def test_killed_processes_pause_nothing_and_lose_no_wait(airflow, voicegenie_sandbox, tmp_path):
    tasks = ["deferred", "timed"] if IS_AIRFLOW_2 else ["deferred", "timed", "worker"]
    changing = ("deferred", "timed", "sensor", *(["rescheduled"] if HAS_TASK_STATE_STORE else []))
    set_variable(airflow, "")
    voicegenie_sandbox.add_campaign(id="try-1")
    voicegenie_sandbox.add_campaign(id="try-2")
    voicegenie_sandbox.add_campaign(id="rescheduled", total_count=10**6, status="running")
    for task in (*tasks, "sensor"):
        voicegenie_sandbox.add_campaign(id=task, total_count=10**6, status="running" if task == "sensor" else "paused")
    write_dags(
        airflow,
        tmp_path,
        f"""
        with DAG("waits", **once):
            for task_id in {tasks}:
                StartCampaignOperator(
                    task_id=task_id,
                    campaign_id=task_id if task_id == "worker" else "{{{{ var.value.whose }}}}" + task_id,
                    deferrable=task_id != "worker",
                    completion_timeout=40 if task_id == "timed" else None,
                    **wait,
                )
            CampaignCompletedSensor(
                task_id="sensor",
                campaign_id="{{{{ var.value.whose }}}}sensor",
                deferrable=True,
                poke_interval=0.5,
                retries=2,
            )
            if {HAS_TASK_STATE_STORE}:
                CampaignCompletedSensor(
                    task_id="rescheduled",
                    campaign_id="{{{{ var.value.whose }}}}rescheduled",
                    mode="reschedule",
                    poke_interval=10,
                    # Airflow fails a sensor that is queued again before it has noted that its last poke is over.
                    retries=20,
                    retry_delay=timedelta(seconds=1),
                )
                StartCampaignOperator(
                    task_id="retried",
                    campaign_id="try-{{{{ ti.try_number }}}}",
                    completion_timeout=1,
                    outcomes={{"COMPLETION_TIMEOUT": "retry"}},
                    **{{**wait, "retries": 2}},
                )
        """,
    )

    def polled(task, more=3):
        already = voicegenie_sandbox.request_count("get", task) + voicegenie_sandbox.request_count("list")
        return lambda: (
            voicegenie_sandbox.request_count("get", task) + voicegenie_sandbox.request_count("list") >= already + more
        )

    with Services(airflow, kills=True) as services:
        services.start("scheduler")
        services.start("triggerer")
        for task in tasks:
            wait_for(f"start of {task}", lambda task=task: voicegenie_sandbox.status(task) == "running")
        for task in ("deferred", "timed", "sensor"):  # `timed` may be over by now
            wait_for(f"deferral of {task}", lambda task=task: state(airflow, task) in ("deferred", "failed"))
        wait_for("polls", polled("deferred"))
        if HAS_TASK_STATE_STORE:
            wait_for("a poke", lambda: voicegenie_sandbox.request_count("get", "rescheduled") >= 1)
            wait_for("the second try", lambda: state(airflow, "retried") == "failed")
        let_templates_give_theirs(airflow, voicegenie_sandbox, changing)

        services.kill("triggerer")
        services.start("triggerer")
        wait_for("polls after a killed triggerer", polled("deferred"))
        services.stop("triggerer")
        services.start("triggerer")
        wait_for("polls after a restarted triggerer", polled("deferred"))

        if "worker" in tasks:
            ((_, tries, pid),) = rows(airflow, "worker")
            os.kill(pid, signal.SIGTERM)
            wait_for(
                "a new try", lambda: rows(airflow, "worker")[0][1] > tries and state(airflow, "worker") == "running"
            )
            wait_for("polls of the new try", polled("worker"))
        services.kill("scheduler")
        services.start("scheduler")
        wait_for("the completion timeout", lambda: state(airflow, "timed") == "failed")
        if "worker" in tasks:
            # Killed with the scheduler; missed for want of a heartbeat.
            ((_, tries, _),) = rows(airflow, "worker")
            wait_for(
                "a third try", lambda: rows(airflow, "worker")[0][1] >= 3 and state(airflow, "worker") == "running"
            )
        for task in ("deferred", "sensor", "worker", "rescheduled"):
            if task in (*tasks, *changing):
                voicegenie_sandbox.sandbox.store.change(task, status="completed")
                wait_for(f"success of {task}", lambda task=task: state(airflow, task) == "success")
    assert {task: voicegenie_sandbox.start_count(task) for task in tasks} == dict.fromkeys(tasks, 1)
    assert voicegenie_sandbox.request_count("pause") == 0
    assert voicegenie_sandbox.status("timed") == "running"
    check_that_theirs_are_left_alone(voicegenie_sandbox, changing)
    if HAS_TASK_STATE_STORE:
        assert (voicegenie_sandbox.start_count("try-1"), voicegenie_sandbox.start_count("try-2")) == (1, 0)
    for task in ("deferred", "sensor"):
        (result,) = airflow.returned(task)
        assert result["statistics"]["total_contacts"] == 10**6
    # All waits share one poll, and what it finds is in the log of the task that it is about.
    for task in ("deferred", "timed", "sensor"):
        text = "".join(trigger_logs(airflow, task))
        assert "of 1000000 calls" in text
        assert set(re.findall(r"Campaign '([\w-]+)'", text)) == {task}
    kept = airflow.everything_kept()
    assert b"COMPLETION_TIMEOUT" in kept
    assert (b"an earlier try of this task started campaign 'try-1'" in kept) == HAS_TASK_STATE_STORE
    assert b"This task stays with 'deferred', which it first looked at" in kept
    assert b"XCom not found" not in kept


@pytest.mark.skipif(IS_AIRFLOW_2, reason="its executor for SQLite runs tasks in the scheduler itself")
def test_a_task_and_a_trigger_that_are_given_up_for_lost_pause_nothing(airflow, voicegenie_sandbox, tmp_path):
    for task in ("worker", "deferred"):
        voicegenie_sandbox.add_campaign(id=task, total_count=10**6, status="scheduled")
    write_dags(
        airflow,
        tmp_path,
        """
        with DAG("waits", **once):
            for task_id in ("worker", "deferred"):
                StartCampaignOperator(
                    task_id=task_id, campaign_id=task_id, deferrable=task_id == "deferred", **wait
                )
        """,
    )
    with Services(airflow, kills=True) as services:
        services.start("scheduler")
        services.start("triggerer")
        wait_for("a deferral", lambda: state(airflow, "deferred") == "deferred")
        for task in ("worker", "deferred"):
            wait_for(f"polls of {task}", lambda task=task: voicegenie_sandbox.request_count("get", task) > 3)
        ((_, tries, pid),) = rows(airflow, "worker")

        # As if the scheduler that queued it were dead: a task that runs is scheduled again.
        airflow.change("UPDATE dag SET is_paused = 1")
        airflow.change("INSERT INTO job (job_type, state) VALUES ('SchedulerJob', 'failed')")
        airflow.change(
            "UPDATE task_instance SET queued_by_job_id = (SELECT max(id) FROM job) WHERE task_id = ?", "worker"
        )
        wait_for("the end of its process", lambda: not psutil.pid_exists(pid))
        assert state(airflow, "worker") in (None, "scheduled")
        airflow.change("UPDATE dag SET is_paused = 0")
        wait_for("another process", runs_again(airflow, "worker", tries + 1))

        # As if the first triggerer were dead: another one gets its trigger.
        triggerers = "SELECT id FROM job WHERE job_type = 'TriggererJob' ORDER BY id"
        services.start("triggerer", known_as="another-triggerer")
        wait_for("another triggerer", lambda: len(airflow.query(triggerers)) == 2)
        airflow.change("UPDATE trigger SET triggerer_id = ?", airflow.query(triggerers)[1][0])
        wait_for("its trigger", lambda: len(trigger_logs(airflow, "deferred")) == 2)
        if TELLS_TRIGGERS_OF_KILLS:
            wait_for(
                "the end of the first trigger",
                lambda: any(ANOTHER_FOLLOWS in log for log in trigger_logs(airflow, "deferred")),
            )
        for task in ("worker", "deferred"):
            voicegenie_sandbox.sandbox.store.change(task, status="completed")
            wait_for(f"success of {task}", lambda task=task: state(airflow, task) == "success")
    assert (voicegenie_sandbox.start_count("worker"), voicegenie_sandbox.start_count("deferred")) == (1, 1)
    assert voicegenie_sandbox.request_count("pause") == 0


def trigger_logs(airflow, task_id):
    """Return what each trigger of a task has logged."""
    return [path.read_text() for path in airflow.home.rglob("*.trigger.*.log") if f"task_id={task_id}/" in str(path)]


def mark_as_failed(services, run_id, task):
    services.request("PATCH", f"dags/ended/dagRuns/{run_id}/taskInstances/{task}", new_state="failed")


def clear(services, run_id, tasks):
    services.request(
        "POST",
        "dags/ended/clearTaskInstances",
        dry_run=False,
        only_failed=False,
        dag_run_id=run_id,
        task_ids=tasks,
    )


def test_who_ends_a_waiting_task_pauses_its_campaign(shared):
    sandbox, services = shared.sandbox, shared.services
    ended = ["out_of_time", *([] if IS_AIRFLOW_2 else ["marked_in_worker", "cleared_in_worker"])]
    ended += ["marked", "cleared"] if TELLS_TRIGGERS_OF_KILLS else []
    changing = [task for task in (*ended, "left", "not_ours") if not task.startswith("cleared")]
    set_variable(shared, "")
    for task in (*ended, "left", "not_ours"):
        sandbox.add_campaign(id=task, total_count=10**6, status="running" if task == "not_ours" else "scheduled")
    shared.add_dags(
        "ended",
        HEADER
        + dedent(f"""
        wait["retries"] = 0
        with DAG("ended", **once):
            for task_id in {[*ended, "left", "not_ours"]}:
                StartCampaignOperator(
                    task_id=task_id,
                    campaign_id=("" if task_id.startswith("cleared") else "{{{{ var.value.whose }}}}") + task_id,
                    deferrable=not task_id.endswith("in_worker"),
                    execution_timeout=timedelta(seconds=40) if task_id == "out_of_time" else None,
                    pause_on_kill=task_id != "left",
                    outcomes={{"CAMPAIGN_ALREADY_RUNNING": "succeed"}},
                    **wait,
                )
        """),
    )
    # Airflow has cancelled the trigger several times over by then.
    sandbox.inject("status", "pause", campaign_id="marked", status=503, times=3)
    paused = lambda task: sandbox.request_count("pause", task) > 3 * (task == "marked")  # noqa: E731
    for task in (*ended, "left", "not_ours"):
        wait_for(f"start of {task}", lambda task=task: sandbox.status(task) == "running")
        if not task.endswith("in_worker") and task != "out_of_time":
            wait_for(f"deferral of {task}", lambda task=task: shared.state("ended", task) == "deferred")
    let_templates_give_theirs(shared, sandbox, changing)
    if not IS_AIRFLOW_2:
        ((run_id,),) = shared.query("SELECT run_id FROM dag_run WHERE dag_id = 'ended'")
        cleared = [task for task in ended if task.startswith("cleared")]
        marked = [task for task in (*ended, "left", "not_ours") if task not in (*cleared, "out_of_time")]
        for task in marked:
            wait_for(f"polls of {task}", lambda task=task: sandbox.request_count("list") > 2)
            mark_as_failed(services, run_id, task)
        clear(services, run_id, cleared)
    for task in ended:
        wait_for(f"pause of {task}", lambda task=task: paused(task))
    if not IS_AIRFLOW_2:
        for task in cleared:
            if RUNS_NO_CLEARED_TASK:
                mark_as_failed(services, run_id, task)
                clear(services, run_id, [task])
            wait_for(f"a new start of {task}", lambda task=task: sandbox.start_count(task) == 2)
            assert sandbox.status(task) == "running"
    if "cleared" in ended:
        wait_for("another deferral", lambda: shared.state("ended", "cleared") == "deferred")
    wait_for("the end of time", lambda: shared.state("ended", "out_of_time") == "failed")
    for task in ended:
        if not task.startswith("cleared"):
            assert (task, shared.state("ended", task), sandbox.status(task)) == (task, "failed", "paused")
            assert sandbox.start_count(task) == 1
    check_that_theirs_are_left_alone(sandbox, changing)
    assert sandbox.request_count("pause", "left") == 0
    assert sandbox.request_count("pause", "not_ours") == 0
    assert "the task was killed, so the campaign was paused" in shared.logs("ended")
