# SPDX-License-Identifier: Apache-2.0
"""
Run the pipeline example as a real DAG run in a real Airflow, against the sandbox, with a line for each task.

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
import time
from itertools import islice
from pathlib import Path
from typing import Any

from airflow_provider_voicegenie.sandbox.server import running
from airflow_provider_voicegenie.sandbox.service import Sandbox
from airflow_provider_voicegenie.sandbox.store import SandboxStore

ROOT = Path(__file__).resolve().parent.parent
DAG_ID = "voicegenie_pipeline"
#: The day of the run, and the campaign that the upload makes for it.
DAY = "2026-01-01"
CAMPAIGN_NAME = f"renewal {DAY}"


#: What a line about a finished task says of what it returned.
SAYS = {
    "choose_customers": lambda path: f"the customers to call are in {Path(path).name}",
    "upload": lambda result: f"{result['uploaded']} contacts are in the new campaign {result['campaign_name']!r}",
    "ready": lambda result: f"the campaign has its script, and {result['total_count']} registered contacts",
    "plan": lambda result: f"{result['contacts']} people would be phoned now; nobody was",
    "start": lambda result: (
        f"{result['status']}: {result['statistics']['calls_completed']} of "
        f"{result['statistics']['total_contacts']} calls were successful"
    ),
    "export": lambda result: f"{result['rows']} calls are in {Path(result['path']).name}",
    "load_calls": lambda count: f"{count} calls are in the table",
    "report": lambda text: "\n" + textwrap.indent(text, "    "),
}


def main() -> int:
    """Run the demo; return the exit code."""
    # Time runs so fast that the calls are over before Airflow looks for the first time.
    sandbox = Sandbox(SandboxStore(speed=600))
    with tempfile.TemporaryDirectory(prefix="voicegenie-demo-") as home, running(sandbox) as url:
        environment = airflow_environment(Path(home), url, sandbox.api_key)
        print(f"The sandbox stands in for VoiceGenie at {url}; nobody is phoned. This takes about a minute.")
        print("Setting up Airflow's database ...", flush=True)
        if not succeeds(["db", "migrate"], environment):
            return 1
        print(f"Running the DAG {DAG_ID} for the day {DAY}:", flush=True)
        if not succeeds(["dags", "test", DAG_ID, f"{DAY}T00:00:00+00:00"], environment, Progress(Path(home))):
            return 1
        states = states_of(Path(home))
        made = [campaign for campaign in sandbox.store.all() if campaign.name == CAMPAIGN_NAME]
        show_files(Path(home) / DAG_ID)
    print(f"\nNext: `make ui` to see it in Airflow, the DAG in example_dags/{DAG_ID}.py, or the sandbox alone:")
    command = Path(sys.executable).with_name("voicegenie-sandbox")
    print(f"  {command.relative_to(ROOT) if command.is_relative_to(ROOT) else command} --port 8642")
    good = states == dict.fromkeys(SAYS, "success") and [
        (campaign.total_count, campaign.status, campaign.start_count) for campaign in made
    ] == [(20, "completed", 1)]
    if not good:
        print("\nThis is wrong: all tasks must succeed, and one campaign must be made and started, with 20 contacts.")
        print(f"The tasks: {states}")
    return 0 if good else 1


class Progress:
    """Prints a line for each task as it ends, by what is in Airflow's database."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._shown: set[str] = set()

    def show(self) -> None:
        """Print the lines that are new."""
        for task, state in states_of(self._home).items():
            if task in self._shown or state not in ("success", "failed", "skipped", "upstream_failed"):
                continue
            self._shown.add(task)
            returned = returned_by(self._home, task)
            line = state if state != "success" or returned is None else SAYS[task](returned)
            print(f"  {task}: {line}", flush=True)


def show_files(folder: Path) -> None:
    """Print the first lines of each file that the run has written."""
    for path in sorted(folder.rglob("*.*")):
        if path.suffix in (".csv", ".jsonl"):
            print(f"\n{path.name}, its first lines:")
            with path.open(encoding="utf-8") as file:
                print(textwrap.indent("".join(islice(file, 3)), "    "), end="")


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


def succeeds(arguments: list[str], environment: dict[str, str], progress: Progress | None = None) -> bool:
    """Run an Airflow command quietly, and show the progress of its tasks; if it fails, print its output."""
    command = [sys.executable, "-m", "airflow", *arguments]
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True) as process:
            while progress is not None and process.poll() is None:
                progress.show()
                time.sleep(0.5)
        if progress is not None:
            progress.show()
        if process.returncode:
            output.seek(0)
            # Not all arguments: one may be a password.
            print(f"`airflow {' '.join(arguments[:2])}` failed with exit code {process.returncode}:\n{output.read()}")
    return process.returncode == 0


def states_of(home: Path) -> dict[str, str]:
    """Return the states of the tasks, the first to end first, from Airflow's database."""
    query = "SELECT task_id, state FROM task_instance WHERE dag_id = ? ORDER BY end_date"
    return dict(ask(home, query, DAG_ID))


def returned_by(home: Path, task: str) -> Any:
    """Return what a task returned; ``None`` for nothing."""
    query = "SELECT value FROM xcom WHERE dag_id = ? AND task_id = ? AND key = 'return_value'"
    ((value,),) = ask(home, query, DAG_ID, task) or [("null",)]
    # SQLite makes a number of what looks like one; Airflow 2 keeps bytes.
    return json.loads(value) if isinstance(value, str | bytes) else value


def ask(home: Path, query: str, *values: str) -> list[tuple[Any, ...]]:
    """Read Airflow's database."""
    with contextlib.closing(sqlite3.connect(home / "airflow.db", timeout=900)) as database:
        return database.execute(query, values).fetchall()


if __name__ == "__main__":
    sys.exit(main())
