# SPDX-License-Identifier: Apache-2.0
"""
Run the smallest example as a real DAG run in a real Airflow, against the sandbox, and print the result.

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
from pathlib import Path

from airflow_provider_voicegenie.sandbox.server import running
from airflow_provider_voicegenie.sandbox.service import Sandbox
from airflow_provider_voicegenie.sandbox.store import SandboxStore

ROOT = Path(__file__).resolve().parent.parent
DAG_ID = "voicegenie_smallest"
CAMPAIGN_ID = "ready"
RUN_DATE = "2026-01-01T00:00:00+00:00"


def main() -> int:
    """Run the demo; return the exit code."""
    sandbox = Sandbox(SandboxStore(speed=60))
    with tempfile.TemporaryDirectory(prefix="voicegenie-demo-") as home, running(sandbox) as url:
        before = sandbox.store.find(CAMPAIGN_ID).status
        environment = airflow_environment(Path(home), url, sandbox.api_key)
        print(f"The sandbox stands in for VoiceGenie at {url}. Setting up Airflow's database ...", flush=True)
        if not succeeds(["db", "migrate"], environment):
            return 1
        print(f"Running the DAG {DAG_ID} for campaign {CAMPAIGN_ID!r} ...", flush=True)
        conf = json.dumps({"campaign_id": CAMPAIGN_ID})
        if not succeeds(["dags", "test", DAG_ID, RUN_DATE, "--conf", conf], environment):
            return 1
        states = task_states(Path(home))
        after = sandbox.store.find(CAMPAIGN_ID)
    print("\nTask states:")
    for task, state in states.items():
        print(f"  {task:<8} {state}")
    print(f"Campaign {CAMPAIGN_ID!r}: {before} before, {after.status} after, started {after.start_count} time(s).")
    print(
        "\nNext: `make ui` to see it in Airflow, the DAG in example_dags/voicegenie_smallest.py, or the sandbox alone:"
    )
    command = Path(sys.executable).with_name("voicegenie-sandbox")
    print(f"  {command.relative_to(ROOT) if command.is_relative_to(ROOT) else command} --port 8642")
    good = states == {"ready": "success", "start": "success"} and after.start_count == 1 and before == "scheduled"
    if not good:
        print("\nThis is wrong: both tasks must succeed, and the campaign must be started once.")
    return 0 if good else 1


def airflow_environment(home: Path, url: str, api_key: str) -> dict[str, str]:
    """Return the environment variables of a temporary Airflow with a connection to the sandbox."""
    from airflow_provider_voicegenie.sandbox.connection import airflow_connection

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


def task_states(home: Path) -> dict[str, str]:
    """Return the states of the tasks that ran, from Airflow's database."""
    with contextlib.closing(sqlite3.connect(home / "airflow.db")) as database:
        rows = database.execute("SELECT task_id, state FROM task_instance WHERE dag_id = ? ORDER BY 1", [DAG_ID])
        return dict(rows.fetchall())


def airflow(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run an Airflow command."""
    command = [sys.executable, "-m", "airflow", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


if __name__ == "__main__":
    sys.exit(main())
