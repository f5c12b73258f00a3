# SPDX-License-Identifier: Apache-2.0
"""
Run the pipeline example as a real DAG run in a real Airflow, against the sandbox, and print its report.

Airflow gets a temporary home on SQLite, which is removed at the end. Nothing is left running.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from airflow_provider_voicegenie.sandbox.server import running
from airflow_provider_voicegenie.sandbox.service import Sandbox
from airflow_provider_voicegenie.sandbox.store import SandboxStore

ROOT = Path(__file__).resolve().parent.parent
DAG_ID = "voicegenie_pipeline"
#: The day of the run, and the campaign that the upload makes for it.
DAY = "2026-01-01"
CAMPAIGN_NAME = f"renewal {DAY}"
TASKS = ("choose_customers", "upload", "ready", "plan", "start", "export", "load_calls", "report")


def main() -> int:
    """Run the demo; return the exit code."""
    # Time runs so fast that the calls are over before Airflow looks for the first time.
    sandbox = Sandbox(SandboxStore(speed=600))
    with tempfile.TemporaryDirectory(prefix="voicegenie-demo-") as home, running(sandbox) as url:
        environment = airflow_environment(Path(home), url, sandbox.api_key)
        print(f"The sandbox stands in for VoiceGenie at {url}. Setting up Airflow's database ...", flush=True)
        if not succeeds(["db", "migrate"], environment):
            return 1
        print(f"Running the DAG {DAG_ID} for the day {DAY} ...", flush=True)
        if not succeeds(["dags", "test", DAG_ID, f"{DAY}T00:00:00+00:00"], environment):
            return 1
        states, report = result(Path(home))
        made = [campaign for campaign in sandbox.store.all() if campaign.name == CAMPAIGN_NAME]
    print("\nTask states:")
    for task in TASKS:
        print(f"  {task:<17} {states.get(task)}")
    for campaign in made:
        print(
            f"Campaign {campaign.name!r} was made: {campaign.total_count} contacts, {campaign.status}, started "
            f"{campaign.start_count} time(s)."
        )
    print("\nThe report:")
    print(textwrap.indent(report, "  "))
    print(f"\nNext: `make ui` to see it in Airflow, the DAG in example_dags/{DAG_ID}.py, or the sandbox alone:")
    command = Path(sys.executable).with_name("voicegenie-sandbox")
    print(f"  {command.relative_to(ROOT) if command.is_relative_to(ROOT) else command} --port 8642")
    good = (
        states == dict.fromkeys(TASKS, "success")
        and [(campaign.total_count, campaign.start_count) for campaign in made] == [(20, 1)]
        and "answered" in report
    )
    if not good:
        print("\nThis is wrong: all tasks must succeed, and one campaign must be made and started, with 20 contacts.")
    return 0 if good else 1


def airflow_environment(home: Path, url: str, api_key: str) -> dict[str, str]:
    """Return the environment variables of a temporary Airflow with a connection to the sandbox."""
    from airflow_provider_voicegenie.sandbox.server import airflow_connection

    return {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW_CONN_VOICEGENIE_DEFAULT": airflow_connection(url, api_key),
    }


def succeeds(arguments: list[str], environment: dict[str, str]) -> bool:
    """Run an Airflow command quietly; if it fails, print its output."""
    result = airflow(arguments, environment)
    if result.returncode:
        print(f"`airflow {' '.join(arguments)}` failed with exit code {result.returncode}:\n{result.stdout}")
        print(result.stderr, file=sys.stderr)
    return result.returncode == 0


def result(home: Path) -> tuple[dict[str, str], str]:
    """Return the states of the tasks that ran, and what the last one returned, from Airflow's database."""
    with contextlib.closing(sqlite3.connect(home / "airflow.db")) as database:
        states = database.execute("SELECT task_id, state FROM task_instance WHERE dag_id = ?", [DAG_ID]).fetchall()
        returned = "SELECT value FROM xcom WHERE dag_id = ? AND task_id = ? AND key = 'return_value'"
        (report,) = database.execute(returned, [DAG_ID, TASKS[-1]]).fetchone() or ('""',)
        return dict(states), json.loads(report)


def airflow(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run an Airflow command."""
    command = [sys.executable, "-m", "airflow", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
