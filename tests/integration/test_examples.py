# SPDX-License-Identifier: Apache-2.0
"""Each example, in a real Airflow, against the sandbox over real HTTP."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import airflow as installed_airflow
import pytest
from services import Services, wait_for

pytestmark = pytest.mark.airflow

EXAMPLES = Path(__file__).parents[2] / "example_dags"
VERSION = tuple(map(int, installed_airflow.__version__.split(".")[:2]))


def test_the_smallest_example(airflow, voicegenie_sandbox):
    assert airflow.test_dag("voicegenie_smallest", campaign_id="ready") == {"ready": "success", "start": "success"}
    assert voicegenie_sandbox.start_count("ready") == 1
    (started,) = airflow.returned("start")
    assert started["status"] == "running"
    (ready,) = airflow.returned("ready")
    assert ready["total_count"] == 20


def test_failure_rules(airflow, voicegenie_sandbox):
    states = [
        airflow.test_dag("voicegenie_failure_rules", f"2026-01-0{day}T00:00:00+00:00", campaign_id=campaign_id)
        for day, campaign_id in enumerate(["ready", "running", "nobody"], 1)
    ]
    assert states == [{"start": "success"}, {"start": "success"}, {"start": "skipped"}]
    assert voicegenie_sandbox.start_count("ready") == 1
    assert voicegenie_sandbox.start_count("running") == 0


def test_a_mapped_start(airflow, voicegenie_sandbox):
    airflow.run("pools", "set", "voicegenie", "4", "")
    states = airflow.test_dag("voicegenie_mapped_start", campaign_ids=["ready", "running", "completed", "paused"])
    assert states == {
        "campaign_ids": "success",
        "start[0]": "success",
        "start[1]": "skipped",
        "start[2]": "skipped",
        "start[3]": "success",
    }
    assert voicegenie_sandbox.start_count("ready") == voicegenie_sandbox.start_count("paused") == 1


def test_taskflow(airflow, voicegenie_sandbox):
    voicegenie_sandbox.speed = 30
    states = airflow.test_dag("voicegenie_taskflow", segment="ready")
    assert states == {"find_campaign": "success", "call": "success", "report": "success"}
    assert airflow.returned("report") == ["16 of 20 calls ended well."]


def test_calling_hours(airflow, voicegenie_sandbox):
    assert airflow.test_dag("voicegenie_calling_hours", campaign_id="ready") == {"ready": "success", "start": "success"}
    assert voicegenie_sandbox.start_count("ready") == 1


@pytest.mark.parametrize(("campaign_id", "goes_on"), [("ready", "announce"), ("completed", "write_letters")])
def test_branch_on_skip(airflow, campaign_id, goes_on):
    states = airflow.test_dag("voicegenie_branch_on_skip", campaign_id=campaign_id)
    assert states.pop("start") == ("success" if goes_on == "announce" else "skipped")
    assert states.pop("note") == "success"
    assert {task for task, state in states.items() if state == "success"} == {goes_on}
    assert campaign_id in airflow.returned(goes_on)[0]


@pytest.mark.parametrize("agents", [0, 1])
def test_teardown(airflow, voicegenie_sandbox, agents):
    states = airflow.test_dag("voicegenie_teardown", campaign_id="ready", agents=agents)
    assert states == {"start": "success", "staff_the_hotline": "success" if agents else "failed", "pause": "success"}
    assert voicegenie_sandbox.status("ready") == "paused"


@pytest.mark.skipif(VERSION < (3, 3), reason="Airflow has retry policies since 3.3")
def test_approval_and_retry_after(airflow, voicegenie_sandbox):
    """Both need a scheduler, so they share one."""

    def begin(dag_id, campaign_id):
        wait_for(dag_id, lambda: airflow.query("SELECT 1 FROM serialized_dag WHERE dag_id = ?", dag_id))
        body = {"logical_date": None, "conf": {"campaign_id": campaign_id}}
        return services.request("POST", f"dags/{dag_id}/dagRuns", **body)["dag_run_id"]

    def states(run_id):
        return dict(airflow.query("SELECT task_id, state FROM task_instance WHERE run_id = ?", run_id))

    def answer(run_id, choice):
        # Who answers before the scheduler has noted that the task's process is gone makes it think that it was lost.
        noted = f"state success for task instance .*task_id='approval', run_id='{re.escape(run_id)}'"
        wait_for("the question", lambda: re.search(noted, (airflow.home / "scheduler.log").read_text()))
        path = f"dags/voicegenie_approval/dagRuns/{run_id}/taskInstances/approval/-1/hitlDetails"
        return services.request("PATCH", path, chosen_options=[choice], params_input={})

    voicegenie_sandbox.add_campaign(id="busy")
    voicegenie_sandbox.inject("status", "start", campaign_id="busy", status=429, headers={"Retry-After": "1"})
    with Services(airflow) as services:
        services.start("scheduler")
        services.start("triggerer")
        wait_for("the API server", services.answers)
        retried = begin("voicegenie_retry_after", "busy")
        approved, rejected = begin("voicegenie_approval", "ready"), begin("voicegenie_approval", "paused")
        answer(approved, "Approve")
        answer(rejected, "Reject")
        endings = {"ready": "success", "approval": "success"}
        wait_for("the approved start", lambda: states(approved) == {**endings, "start": "success"})
        wait_for("the rejected start", lambda: states(rejected) == {**endings, "start": "skipped"})
        wait_for("the second try", lambda: states(retried) == {"start": "success"})
    assert airflow.query("SELECT try_number FROM task_instance WHERE run_id = ?", retried) == [(2,)]
    assert {name: voicegenie_sandbox.start_count(name) for name in ("ready", "paused", "busy")} == {
        "ready": 1,
        "paused": 0,
        "busy": 1,
    }


def test_each_example_says_when_to_use_it():
    files = sorted(EXAMPLES.glob("*.py"))
    assert len(files) >= 9
    for file in files:
        assert (ast.get_docstring(ast.parse(file.read_text())) or "").startswith("### Use it "), file.name
