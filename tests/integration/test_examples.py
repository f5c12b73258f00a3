# SPDX-License-Identifier: Apache-2.0
"""Each example, in a real Airflow, against the sandbox over real HTTP."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
from services import AIRFLOW_VERSION, Services, wait_for

from airflow_provider_voicegenie.sandbox.connection import airflow_connection

pytestmark = pytest.mark.airflow

EXAMPLES = Path(__file__).parents[2] / "example_dags"

#: DAG, its parameters, and the states that its tasks come to.
RUNS = [
    ("smallest", {"campaign_id": "ready"}, {"ready": "success", "start": "success"}),
    ("smallest", {"campaign_id": "lost"}, {"ready": "success", "start": "success"}),
    ("failure_rules", {"campaign_id": "rules"}, {"start": "success"}),
    ("failure_rules", {"campaign_id": "running"}, {"start": "success"}),
    ("failure_rules", {"campaign_id": "nobody"}, {"start": "skipped"}),
    (
        "mapped_start",
        {"campaign_ids": ["mapped", "running", "completed", "paused"]},
        {
            "campaign_ids": "success",
            "start[0]": "success",
            "start[1]": "skipped",
            "start[2]": "skipped",
            "start[3]": "success",
        },
    ),
    (
        "several_accounts",
        {
            "starts": [
                {"campaign_id": "home", "voicegenie_conn_id": "voicegenie_default"},
                {"campaign_id": "abroad", "voicegenie_conn_id": "voicegenie_spain"},
                {"campaign_id": "locked", "voicegenie_conn_id": "voicegenie_wrong_key"},
            ]
        },
        {"starts": "success", "start[0]": "success", "start[1]": "success", "start[2]": "failed"},
    ),
    ("taskflow", {"segment": "followed"}, {"find_campaign": "success", "call": "success", "report": "success"}),
    ("calling_hours", {"campaign_id": "hours"}, {"ready": "success", "start": "success"}),
    (
        "branch_on_skip",
        {"campaign_id": "branch"},
        {"start": "success", "announce": "success", "write_letters": "skipped", "note": "success"},
    ),
    (
        "branch_on_skip",
        {"campaign_id": "completed"},
        {"start": "skipped", "announce": "skipped", "write_letters": "success", "note": "success"},
    ),
    (
        "teardown",
        {"campaign_id": "staffed", "agents": 1},
        {"start": "success", "staff_the_hotline": "success", "pause": "success", "sum_up": "success"},
    ),
    (
        "teardown",
        {"campaign_id": "unstaffed", "agents": 0},
        {"start": "success", "staff_the_hotline": "failed", "pause": "success", "sum_up": "upstream_failed"},
    ),
]
STARTED = {
    "ready",
    "lost",
    "rules",
    "mapped",
    "paused",
    "home",
    "abroad",
    "followed",
    "hours",
    "branch",
    "staffed",
    "unstaffed",
}


def test_the_examples(airflow, voicegenie_sandbox):
    voicegenie_sandbox.speed = 30
    for campaign_id in (STARTED | {"locked"}) - {"paused", "ready"}:
        voicegenie_sandbox.add_campaign(id=campaign_id, total_count=20 if campaign_id == "followed" else 10**6)
    voicegenie_sandbox.inject("close", "start", campaign_id="lost", after_acting=True)
    airflow.environment |= {
        "AIRFLOW_CONN_VOICEGENIE_SPAIN": voicegenie_sandbox.connection(),
        "AIRFLOW_CONN_VOICEGENIE_WRONG_KEY": airflow_connection(voicegenie_sandbox.url, "another-key"),
    }
    commands = [["pools", "set", "voicegenie", "4", ""]]
    for day, (name, conf, _) in enumerate(RUNS, 1):
        date = f"2026-01-{day:02}T00:00:00+00:00"
        commands.append(["dags", "test", f"voicegenie_{name}", date, "--conf", json.dumps(conf)])
    airflow.run_all(commands)
    names = dict.fromkeys(name for name, _, _ in RUNS)
    found = {name: airflow.states(f"voicegenie_{name}") for name in names}
    assert found == {name: [states for other, _, states in RUNS if other == name] for name in names}
    # The second: a pause that succeeds does not hide that the work failed.
    failed = airflow.query("SELECT dag_id FROM dag_run WHERE state = 'failed' ORDER BY dag_id")
    assert failed == [("voicegenie_several_accounts",), ("voicegenie_teardown",)]
    started = {campaign.id for campaign in voicegenie_sandbox.sandbox.store.all() if campaign.start_count == 1}
    assert started == STARTED
    readiness, _, _ = airflow.returned("ready")
    assert readiness["total_count"] == 20
    assert airflow.returned("report") == ["16 of 20 calls were successful."]
    assert "branch" in airflow.returned("announce")[0]
    assert "completed" in airflow.returned("write_letters")[0]
    assert voicegenie_sandbox.status("staffed") == voicegenie_sandbox.status("unstaffed") == "paused"


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 1), reason="Airflow asks people since 3.1")
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

    has_retry_policies = AIRFLOW_VERSION >= (3, 3)
    airflow.dags = airflow.home / "dags"
    shutil.copytree(EXAMPLES, airflow.dags)
    approval = (EXAMPLES / "voicegenie_approval.py").read_text()
    assert "days=1" in approval
    (airflow.dags / "short.py").write_text(approval.replace("days=1", "seconds=25").replace("_approval", "_short"))
    voicegenie_sandbox.add_campaign(id="unanswered")
    voicegenie_sandbox.add_campaign(id="busy")
    voicegenie_sandbox.inject("status", "start", campaign_id="busy", status=429, headers={"Retry-After": "1"})
    with Services(airflow) as services:
        services.start("scheduler")
        services.start("triggerer")
        retried = begin("voicegenie_retry_after", "busy") if has_retry_policies else None
        approved, rejected = begin("voicegenie_approval", "ready"), begin("voicegenie_approval", "paused")
        unanswered = begin("voicegenie_short", "unanswered")
        answer(approved, "Approve")
        answer(rejected, "Reject")
        endings = {"ready": "success", "approval": "success"}
        wait_for("the approved start", lambda: states(approved) == {**endings, "start": "success"})
        wait_for("the rejected start", lambda: states(rejected) == {**endings, "start": "skipped"})
        over = "SELECT 1 FROM dag_run WHERE run_id = ? AND state = 'failed'"
        wait_for("the end of the run without an answer", lambda: airflow.query(over, unanswered))
        assert states(unanswered)["approval"] == "skipped"
        if has_retry_policies:
            wait_for("the second try", lambda: states(retried) == {"start": "success"})
            assert airflow.query("SELECT try_number FROM task_instance WHERE run_id = ?", retried) == [(2,)]
    assert {name: voicegenie_sandbox.start_count(name) for name in ("ready", "paused", "unanswered", "busy")} == {
        "ready": 1,
        "paused": 0,
        "unanswered": 0,
        "busy": int(has_retry_policies),
    }


def test_each_example_says_when_to_use_it():
    files = sorted(EXAMPLES.glob("*.py"))
    assert len(files) >= 10
    for file in files:
        assert (ast.get_docstring(ast.parse(file.read_text())) or "").startswith("### Use it "), file.name
