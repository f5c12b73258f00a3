# SPDX-License-Identifier: Apache-2.0
"""
What the operator adds to Airflow's own work, when many mapped tasks start a campaign each and follow it, deferred.

A real Airflow 3 (API server, scheduler with LocalExecutor, DAG processor, triggerer; SQLite) runs a DAG of N mapped
starts, and a DAG of N mapped tasks that do nothing but defer for as long, in turn::

    python benchmarks/mapped_starts.py --tasks 200
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DAGS = """
from datetime import timedelta
from airflow.providers.common.compat.sdk import DAG, BaseOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator


class Nothing(BaseOperator):
    template_fields = ("campaign_id",)

    def __init__(self, *, campaign_id, **kwargs):
        super().__init__(**kwargs)
        self.campaign_id = campaign_id

    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds={seconds})), method_name="go_on")

    def go_on(self, context, event):
        return {{"campaign_id": self.campaign_id}}


common = {{"schedule": None, "max_active_tasks": 1000}}
with DAG("nothing", **common):
    Nothing.partial(task_id="task").expand(campaign_id=[f"c{{n}}" for n in range({tasks})])
for number in range({rounds}):
    with DAG(f"ours_{{number}}", **common):
        StartCampaignOperator.partial(
            task_id="task", wait_for_completion=True, deferrable=True, poll_interval={interval}
        ).expand(campaign_id=[f"c{{number}}_{{n}}" for n in range({tasks})])
"""

#: Seconds that a campaign runs, and between two polls: what it ends after, half an interval later, on the average.
CAMPAIGN, INTERVAL = 20.0, 10.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    from airflow_provider_voicegenie.sandbox.server import running
    from airflow_provider_voicegenie.sandbox.service import Sandbox
    from airflow_provider_voicegenie.sandbox.store import CALL_SECONDS, SandboxCampaign, SandboxStore

    store = SandboxStore(seeds=list, speed=(CALL_SECONDS + 1) / CAMPAIGN)
    for number in range(options.rounds):
        for task in range(options.tasks):
            store.put(SandboxCampaign(id=f"c{number}_{task}", total_count=1))
    sandbox = Sandbox(store)
    with tempfile.TemporaryDirectory() as home, running(sandbox) as url:
        dags = Path(home, "dags")
        dags.mkdir()
        (dags / "dags.py").write_text(
            DAGS.format(seconds=CAMPAIGN + INTERVAL / 2, tasks=options.tasks, rounds=options.rounds, interval=INTERVAL)
        )
        connection = {"conn_type": "voicegenie", "host": url, "password": sandbox.api_key}
        with airflow(Path(home), connection) as environment:
            seconds: dict[str, list[float]] = {"nothing": [], "ours": []}
            for number in range(options.rounds):
                seconds["nothing"].append(run("nothing", Path(home), environment))
                seconds["ours"].append(run(f"ours_{number}", Path(home), environment))
    starts = sum(campaign.start_count for campaign in store.all())
    print(f"{options.tasks} mapped tasks, {starts} starts; wall time of the DAG run, median of {options.rounds}")
    nothing, ours = (statistics.median(seconds[name]) for name in ("nothing", "ours"))
    print(f"nothing {nothing:8.1f} s\nours    {ours:8.1f} s\nratio   {ours / nothing:8.2f}")


@contextlib.contextmanager
def airflow(home: Path, connection: dict[str, str]):
    """Run an Airflow."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW_CONN_VOICEGENIE_DEFAULT": json.dumps(connection),
        "AIRFLOW__API_AUTH__JWT_SECRET": "for this benchmark only, and long enough for the algorithm in use",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=environment, check=True, capture_output=True)
    processes = []
    try:
        commands = (["api-server", "--port", port, "--workers", "1"], ["dag-processor"], ["scheduler"], ["triggerer"])
        for command in commands:
            with (home / f"{command[0]}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "airflow", *command],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield environment
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(dag_id: str, home: Path, environment: dict[str, str]) -> float:
    """Run a DAG; return how many seconds it took."""
    while not query(home, "SELECT 1 FROM dag WHERE dag_id = ?", dag_id):
        time.sleep(1)
    command = [sys.executable, "-m", "airflow", "dags", "trigger", dag_id]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    sql = (
        "SELECT state, (julianday(end_date) - julianday(start_date)) * 86400 FROM dag_run "
        "WHERE dag_id = ? ORDER BY id DESC LIMIT 1"
    )
    while True:
        ((state, seconds),) = query(home, sql, dag_id)
        if state in ("success", "failed"):
            print(f"{dag_id}: {state} in {seconds:.1f} s", flush=True)
            if state == "failed":
                raise SystemExit("the DAG run failed")
            return float(seconds)
        time.sleep(1)


def query(home: Path, sql: str, *arguments: str) -> list[tuple]:
    """Ask Airflow's database."""
    with contextlib.closing(sqlite3.connect(home / "airflow.db", timeout=60)) as database:
        return database.execute(sql, arguments).fetchall()


if __name__ == "__main__":
    main()
