# SPDX-License-Identifier: Apache-2.0
"""Each example, in a real Airflow, against the sandbox over real HTTP."""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import re
import runpy
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from services import AIRFLOW_VERSION, IS_AIRFLOW_2, wait_for

from airflow_provider_voicegenie.sandbox.server import airflow_connection

pytestmark = pytest.mark.airflow

EXAMPLES = Path(__file__).parents[2] / "example_dags"

#: DAG, its parameters, and the states that its tasks come to.
RUNS = [
    ("smallest", {"campaign_id": "ready"}, {"ready": "success", "start": "success"}),
    ("smallest", {"campaign_id": "lost"}, {"ready": "success", "start": "success"}),
    ("failure_rules", {"campaign_id": "rules"}, {"start": "success"}),
    ("failure_rules", {"campaign_id": "always-running"}, {"start": "success"}),
    ("failure_rules", {"campaign_id": "nobody"}, {"start": "skipped"}),
    (
        "mapped_start",
        {"campaign_ids": ["mapped", "always-running", "completed", "paused"]},
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
    (
        "two_time_zones",
        {"lisbon": "portugal", "new_york": "america"},
        {
            "customers": "success",
            **dict.fromkeys(["living_in_lisbon", "upload_lisbon", "start_lisbon"], "success"),
            **dict.fromkeys(["living_in_new_york", "upload_new_york", "start_new_york"], "success"),
        },
    ),
    ("calling_hours", {"campaign_id": "hours"}, {"ready": "success", "start": "success"}),
    # Nothing more, as it waits on a holiday.
    ("office_hours", {"campaign_id": "office"}, {"start": "success"}),
    *([("two_days", {"campaign_id": "lasting"}, {"start": "success"})] if AIRFLOW_VERSION >= (3, 3) else []),
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
    *(["lasting"] if AIRFLOW_VERSION >= (3, 3) else []),
    "portugal",
    "america",
    "branch",
    "staffed",
    "unstaffed",
}
#: Small, as their task waits for the last call, or as nobody is phoned.
FOLLOWED = {"followed", "lasting", "office", "portugal", "america"}


def test_the_examples(airflow, voicegenie_sandbox):
    voicegenie_sandbox.speed = 30
    for campaign_id in (STARTED | {"locked", "office"}) - {"paused", "ready"}:
        voicegenie_sandbox.add_campaign(id=campaign_id, total_count=20 if campaign_id in FOLLOWED else 10**6)
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
    assert [len(voicegenie_sandbox.uploaded(campaign_id)) for campaign_id in ("portugal", "america")] == [1, 2]
    assert airflow.returned("report") == ["16 of 20 calls were successful."]
    assert "branch" in airflow.returned("announce")[0]
    assert "completed" in airflow.returned("write_letters")[0]
    assert voicegenie_sandbox.status("staffed") == voicegenie_sandbox.status("unstaffed") == "paused"


DAYS_OF_CALLS = [f"2026-01-{day:02}" for day in (5, 6, 7)]


def prepare_missed_calls(airflow):
    """Write the calls of before, and return the numbers: the first was called twice, the last was reached at last."""
    folder = airflow.home / "voicegenie_call_again"
    folder.mkdir()
    numbers = [f"+1 202 555 01{number:02}" for number in range(50, 80)]
    calls = [{"phone_number": number, "status": "busy", "call_time": "2026-01-04T09:00:00Z"} for number in numbers]
    (folder / "calls-2026-01-03.jsonl").write_text(json.dumps(calls[0]) + "\n")
    calls.insert(0, {"phone_number": numbers[-1], "status": "answered", "call_time": "2026-01-04T10:00:00Z"})
    (folder / "calls-2026-01-04.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    return numbers


def check_missed_calls(airflow, sandbox, numbers):
    """Check that those whom nobody reached were called again, up to three times a week."""
    made = {each.name: each.id for each in sandbox.sandbox.store.all() if each.name.startswith("call again ")}
    assert list(made) == [f"call again {day}" for day in DAYS_OF_CALLS[:2]]
    first, second = map(sandbox.uploaded, made.values())
    assert first == numbers[:-1]
    # Whom the first day did not reach either, is called a third time, and never a fourth.
    assert 0 < len(second) < len(first)
    assert numbers[0] not in second
    *whole, last = airflow.states("voicegenie_call_again")
    assert whole == [dict.fromkeys(("choose", "upload", "ready", "start", "export"), "success")] * 2
    assert last == {"choose": "success"} | dict.fromkeys(("upload", "ready", "start", "export"), "skipped")


def test_the_pipeline(airflow, voicegenie_sandbox):
    voicegenie_sandbox.speed = 600
    # Two days, the first once more, and a day without customers.
    times = ("2026-01-01T08:00", "2026-01-02T08:00", "2026-01-01T20:00", "2026-01-03T08:00")
    runs = [["dags", "test", "voicegenie_pipeline", f"{time}:00+00:00"] for time in times]
    runs[3] += ["--conf", json.dumps({"segment": "nobody"})]
    missed = prepare_missed_calls(airflow)
    runs += [["dags", "test", "voicegenie_call_again", f"{day}T08:00:00+00:00"] for day in DAYS_OF_CALLS]
    airflow.run_all(runs)
    check_missed_calls(airflow, voicegenie_sandbox, missed)
    states = airflow.states("voicegenie_pipeline")
    after = ("ready", "plan", "start", "export", "load_calls", "report")
    whole = dict.fromkeys(("choose_customers", "upload", *after), "success")
    again = {"choose_customers": "success", "upload": "failed"} | dict.fromkeys(after, "upstream_failed")
    nobody = {"choose_customers": "success"} | dict.fromkeys(("upload", *after), "skipped")
    assert states == [whole, whole, again, nobody]
    made = {each.name: each for each in voicegenie_sandbox.sandbox.store.all() if each.name.startswith("renewal ")}
    assert {name: each.start_count for name, each in made.items()} == {"renewal 2026-01-01": 1, "renewal 2026-01-02": 1}
    campaign_ids = [each.id for each in made.values()]
    for campaign_id in campaign_ids:
        numbers = voicegenie_sandbox.uploaded(campaign_id)
        assert (len(numbers), numbers[0]) == (20, "+1 202 555 0101")

    assert [result["uploaded"] for result in airflow.returned("upload", "voicegenie_pipeline")] == [20, 20]
    assert [result["contacts"] for result in airflow.returned("plan")] == [20, 20]
    exported, _ = airflow.returned("export", "voicegenie_pipeline")
    by_status = {"answered": 14, "busy": 2, "no_answer": 2, "voicemail": 2}
    assert {status: count for status, count in exported["calls_by_status"].items() if count} == by_status
    report, _ = airflow.returned("report")
    assert report.splitlines() == [
        "status         calls avg seconds",
        "answered          14          30",
        "busy               2           0",
        "no_answer          2           0",
        "voicemail          2          30",
    ]
    folder = airflow.home / "voicegenie_pipeline"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(Path(exported["path"]).read_text().splitlines()) == 20
    with contextlib.closing(sqlite3.connect(folder / "warehouse.db")) as warehouse:
        query = "SELECT status, count(*) FROM calls WHERE campaign_id = ? GROUP BY status"
        for campaign_id in campaign_ids:
            assert dict(warehouse.execute(query, [campaign_id])) == by_status
        people = [value for row in warehouse.execute("SELECT full_name, mobile FROM customers") for value in row]

    # Names and numbers are in the tables and in the file of the contacts, and nowhere else.
    people += [number.replace(" ", "") for number in people]
    for path in airflow.home.rglob("*"):
        if path.is_file() and folder not in path.parents:
            text = path.read_bytes().decode(errors="replace")
            assert not [person for person in people if person in text], path
    contacts = (Path(exported["path"]).with_name("contacts.csv")).read_text()
    assert all(number in contacts for number in numbers)
    assert not [person for person in people if person in Path(exported["path"]).read_text()]


def test_what_an_alert_says(airflow, voicegenie_sandbox):
    text = (EXAMPLES / "voicegenie_scheduled.py").read_text()
    # Nobody knows when the tests run.
    hours = 'CallingHours("09:00", "18:00", "Europe/Berlin", ["mon", "tue", "wed", "thu", "fri"])'
    assert text.count(hours) == 1
    airflow.dags = airflow.home / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "scheduled.py").write_text(
        text.replace(hours, 'CallingHours("00:00", "23:59:59.999999", "Europe/Berlin")')
    )
    conf = json.dumps({"campaign_id": "nobody"})
    said = airflow.run("dags", "test", "voicegenie_scheduled", "2026-01-01", "--conf", conf)
    printed = said.stdout + said.stderr
    assert airflow.states("voicegenie_scheduled") == [{"ready": "failed", "start": "upstream_failed"}], printed
    found = re.search(r"ALERT: task ready of DAG voicegenie_scheduled has failed\. (.*)", printed)
    assert "Check the campaign's id" in found[1]
    assert "[NOT_FOUND: the task fails, without retry]" in found[1]
    assert not voicegenie_sandbox.request_count("start")


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 1), reason="Airflow asks people since 3.1")
def test_approval_retry_after_and_asset(shared):
    """All need a scheduler, and the time that one waits is there for the others."""
    sandbox, services = shared.sandbox, shared.services

    def begin(dag_id, campaign_id):
        wait_for(dag_id, lambda: shared.query("SELECT 1 FROM serialized_dag WHERE dag_id = ?", dag_id))
        body = {"logical_date": None, "conf": {"campaign_id": campaign_id}}
        return services.request("POST", f"dags/{dag_id}/dagRuns", **body)["dag_run_id"]

    def states(run_id):
        return dict(shared.query("SELECT task_id, state FROM task_instance WHERE run_id = ?", run_id))

    def answer(run_id, choice, dag="approval"):
        # Who answers before the scheduler has noted that the task's process is gone makes it think that it was lost.
        noted = f"state success for task instance .*task_id='approval', run_id='{re.escape(run_id)}'"
        wait_for("the question", lambda: re.search(noted, (shared.home / "scheduler.log").read_text()))
        path = f"dags/voicegenie_{dag}/dagRuns/{run_id}/taskInstances/approval/-1/hitlDetails"
        return services.request("PATCH", path, chosen_options=[choice], params_input={})

    has_retry_policies = AIRFLOW_VERSION >= (3, 3)
    approval, watcher = ((EXAMPLES / f"voicegenie_{name}.py").read_text() for name in ("approval", "asset"))
    assert "days=1" in approval
    assert "poll_interval=60" in watcher
    shared.add_dags("approval", approval)
    pilot = (EXAMPLES / "voicegenie_pilot.py").read_text()
    assert '"poll_interval": 10' in pilot
    shared.add_dags("pilot", pilot.replace('"poll_interval": 10', '"poll_interval": 1'))
    # It is paused so that it does not run by itself beside other examples.
    assert "    is_paused_upon_creation=True,\n" in watcher
    watcher = watcher.replace("    is_paused_upon_creation=True,\n", "")
    shared.add_dags("asset", watcher.replace("poll_interval=60", "poll_interval=1"))
    shared.add_dags("short", approval.replace("days=1", "seconds=25").replace("_approval", "_short"))
    if has_retry_policies:
        shared.add_dags("retry_after", (EXAMPLES / "voicegenie_retry_after.py").read_text())
    sandbox.add_campaign(id="unanswered")
    # Approved for 900, and there is one more by the time of the start.
    sandbox.add_campaign(id="grown", total_count=900)
    sandbox.add_campaign(id="busy")
    sandbox.add_campaign(id="piloted", total_count=30)
    sandbox.add_campaign(id="over/there", status="paused", completed_count=5)
    sandbox.inject("status", "start", campaign_id="busy", status=503, headers={"Retry-After": "1"})
    retried = begin("voicegenie_retry_after", "busy") if has_retry_policies else None
    approved, rejected = begin("voicegenie_approval", "ready"), begin("voicegenie_approval", "paused")
    piloted = begin("voicegenie_pilot", "piloted")
    grown, unanswered = begin("voicegenie_approval", "grown"), begin("voicegenie_short", "unanswered")
    wait_for("looks at the campaigns", lambda: sandbox.request_count("list") >= 3)
    sandbox.sandbox.store.change("over/there", status="completed")
    answer(approved, "Approve")
    answer(rejected, "Reject")
    wait_for("the plan", lambda: states(grown).get("plan") == "success")
    sandbox.sandbox.store.change("grown", total_count=901)
    answer(grown, "Approve")
    endings = {"plan": "success", "approval": "success"}
    wait_for("the start that is not approved", lambda: states(grown) == {**endings, "start": "failed"})
    wait_for("the approved start", lambda: states(approved) == {**endings, "start": "success"})
    wait_for("the rejected start", lambda: states(rejected) == {**endings, "start": "skipped"})
    over = "SELECT 1 FROM dag_run WHERE run_id = ? AND state = 'failed'"
    wait_for("the end of the run without an answer", lambda: shared.query(over, unanswered))
    assert states(unanswered)["approval"] == "skipped"
    log = "".join(path.read_text() for path in shared.home.glob("logs/**/*.log") if "task_id=approval" in str(path))
    assert f"A campaign waits for approval: voicegenie_approval, {approved}" in log
    export = shared.home / "voicegenie_asset" / "calls-over%2Fthere.csv.gz"
    wait_for("the export", export.exists)
    wait_for("the end of the pilot", lambda: states(piloted).get("pilot") == "success")
    assert sandbox.status("piloted") == "paused"
    answer(piloted, "Approve", "pilot")
    wait_for("the rest", lambda: states(piloted) == {"pilot": "success", "approval": "success", "rest": "success"})
    assert (sandbox.start_count("piloted"), sandbox.status("piloted")) == (2, "completed")
    if has_retry_policies:
        wait_for("the second try", lambda: states(retried) == {"start": "success"})
        assert shared.query("SELECT try_number FROM task_instance WHERE run_id = ?", retried) == [(2,)]
    assert {name: sandbox.start_count(name) for name in ("ready", "paused", "grown", "unanswered", "busy")} == {
        "ready": 1,
        "grown": 0,
        "paused": 0,
        "unanswered": 0,
        "busy": int(has_retry_policies),
    }
    header, *rows = gzip.decompress(export.read_bytes()).decode().splitlines()
    assert header == "call_id,status,duration,call_time"
    assert len(rows) == 5


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 1), reason="Airflow asks people since 3.1")
@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (
            {"contacts": 900, "name": "Spring", "starts_at": None, "closes_at": None},
            "This phones 900 people of Spring as soon as you approve. Times are in UTC.",
        ),
        (
            {"contacts": None, "name": None, "starts_at": "2026-12-01T08:00:00Z", "closes_at": "2026-12-01T17:00:00Z"},
            "This phones an unknown number of people of the campaign from 2026-12-01T08:00:00Z on. Its calling hours "
            "close at 2026-12-01T17:00:00Z. Approved later, it starts when they open again. Times are in UTC.",
        ),
    ],
)
def test_whoever_approves_is_told_what_they_approve(plan, words):
    module = runpy.run_path(str(EXAMPLES / "voicegenie_approval.py"))
    approval = module["approval"]
    task_instance = SimpleNamespace(xcom_pull=lambda task_ids: {"plan": plan}[task_ids])
    body = approval.render_template(approval.body, {"ti": task_instance})
    assert " ".join(body.split()) == words


@pytest.mark.skipif(IS_AIRFLOW_2, reason="Airflow has watchers since 3.0")
def test_several_campaigns_that_end_at_once():
    module = runpy.run_path(str(EXAMPLES / "voicegenie_asset.py"))
    ended = module["dag"].get_task("ended_campaigns").python_callable

    def events(*campaign_ids):
        return [SimpleNamespace(extra={"payload": {"campaign_id": campaign_id}}) for campaign_id in campaign_ids]

    assert ended(params={"folder": "s3://bucket"}, triggering_asset_events={}) == []
    triggering = {module["campaign_ended"]: events("b", "../a", "b")}
    assert ended(params={"folder": "s3://bucket"}, triggering_asset_events=triggering) == [
        {"campaign_id": "../a", "path": "s3://bucket/calls-..%2Fa.csv.gz"},
        {"campaign_id": "b", "path": "s3://bucket/calls-b.csv.gz"},
    ]


def test_each_example_says_when_to_use_it():
    files = sorted(EXAMPLES.glob("*.py"))
    assert len(files) >= 12
    for file in files:
        assert (ast.get_docstring(ast.parse(file.read_text())) or "").startswith("### Use it "), file.name
