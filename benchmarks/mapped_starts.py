# SPDX-License-Identifier: Apache-2.0
"""
What many mapped starts cost that follow their campaign, deferred: beside the limit, and beside what one writes today.

A real Airflow 3 (API server, scheduler with LocalExecutor, DAG processor, triggerer; SQLite) runs three DAGs in turn:

- ``nothing``: N mapped tasks that do nothing but defer for as long. That is the limit: Airflow's own work.
- ``ours``: N mapped ``StartCampaignOperator(wait_for_completion=True, deferrable=True)``.
- ``http``: N mapped pairs of an ``HttpOperator`` that starts the campaign, and an ``HttpSensor(mode="reschedule")``
  that waits for its end, as often as ours polls.

Printed are the wall time of the DAG run and the processor seconds of all Airflow processes, each a campaign. The latter
are read from ``/proc`` right before the DAG is triggered and once it is over: user and system time of the four services
and of all their living descendants, each with that of its children that have ended (``cutime``, ``cstime``). So a task
that has ended counts, with its parent. The sandbox runs in this process and is not counted, nor is the command that
triggers the DAG. Nothing is subtracted; what an Airflow without any task takes in a minute is printed too::

    pip install apache-airflow-providers-http
    python benchmarks/mapped_starts.py --tasks 200 --campaign 60
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
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: A DAG file for each side, as each task's process loads it with all that it imports.
DAGS = {
    "nothing": """
from datetime import timedelta
from airflow.providers.common.compat.sdk import DAG, BaseOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger


class Nothing(BaseOperator):
    template_fields = ("campaign_id",)

    def __init__(self, *, campaign_id, **kwargs):
        super().__init__(**kwargs)
        self.campaign_id = campaign_id

    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds={seconds})), method_name="go_on")

    def go_on(self, context, event):
        return {{"campaign_id": self.campaign_id}}


def add_tasks(ids):
    Nothing.partial(task_id="task").expand(campaign_id=ids)
""",
    "ours": """
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator


def add_tasks(ids):
    StartCampaignOperator.partial(
        task_id="task", wait_for_completion=True, deferrable=True, poll_interval={interval}
    ).expand(campaign_id=ids)
""",
    "http": """
from airflow.providers.common.compat.sdk import DAG, task_group
from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor


def is_completed(response):
    return response.json()["data"]["campaign_status"] == "completed"


@task_group
def pair(start, look):
    http = {{"http_conn_id": "http_default", "method": "GET"}}
    HttpOperator(task_id="start", endpoint=start, **http) >> HttpSensor(
        task_id="wait",
        endpoint=look,
        mode="reschedule",
        poke_interval={interval},
        response_check=is_completed,
        **http,
    )


def add_tasks(ids):
    pair.expand_kwargs([{{"start": f"startCampaign/{{id}}", "look": f"campaign/{{id}}"}} for id in ids])
""",
}

ROUNDS = """

# The first round is a short one, that no other pays for what is done once.
for number in range({rounds} + 1):
    with DAG(f"{side}_{{number}}", schedule=None, max_active_tasks=1000):
        add_tasks([f"{side}_{{number}}_{{n}}" for n in range({tasks} if number else 2)])
"""

SIDES = ("nothing", "ours", "http")

#: Seconds for which Airflow is watched doing nothing.
IDLE = 60.0


class Cost(NamedTuple):
    """
    What a run of a DAG took.

    :param wall: Seconds.
    :param cpu: Processor seconds of all Airflow processes.
    """

    wall: float
    cpu: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--campaign", type=float, default=20.0, help="seconds that a campaign runs")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two looks at it")
    parser.add_argument("--requests-per-minute", type=int, default=1_000_000, help="of our connection")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    options = parser.parse_args()
    from airflow_provider_voicegenie.sandbox.server import running
    from airflow_provider_voicegenie.sandbox.service import Sandbox
    from airflow_provider_voicegenie.sandbox.store import CALL_SECONDS, SandboxCampaign, SandboxStore

    store = SandboxStore(seeds=list, speed=(CALL_SECONDS + 1) / options.campaign)
    for side in SIDES:
        for number in range(options.rounds + 1):
            for task in range(options.tasks):
                store.put(SandboxCampaign(id=f"{side}_{number}_{task}", total_count=1))
    sandbox = Sandbox(store)
    with tempfile.TemporaryDirectory() as home, running(sandbox) as url:
        for side in options.sides:
            write_dags(Path(home), side, options)
        with airflow(Path(home), connections(url, sandbox.api_key, options.requests_per_minute)) as services:
            costs = measure(services, options.sides, options.rounds)
    starts = sum(campaign.start_count for campaign in store.all()) - 2 * len({"ours", "http"} & set(options.sides))
    print(f"{options.tasks} mapped tasks, campaigns of {options.campaign:g} s, polled every {options.interval:g} s")
    print(f"{starts} starts; {len(sandbox.requests)} requests to the service, warm-up included")
    report(costs, options.tasks)


def write_dags(home: Path, side: str, options: argparse.Namespace, first: str = "") -> None:
    """
    Write a side's DAG file.

    :param home: Airflow's folder.
    :param side: Which.
    :param options: ``tasks``, ``rounds``, ``campaign`` and ``interval``.
    :param first: What the file has to do first.
    """
    # A campaign's end is noticed half an interval later, on the average.
    values = {"side": side, **vars(options), "seconds": options.campaign + options.interval / 2}
    (home / "dags").mkdir(exist_ok=True)
    (home / "dags" / f"{side}.py").write_text(first + (DAGS[side] + ROUNDS).format(**values))


def connections(url: str, key: str, requests_per_minute: int) -> dict[str, str]:
    """Return the Airflow connections to the sandbox, as environment variables."""
    ours = {"conn_type": "voicegenie", "host": url, "password": key}
    http = {"conn_type": "http", "host": url, "extra": {"x-api-key": key}}
    return {
        "AIRFLOW_CONN_VOICEGENIE_DEFAULT": json.dumps({**ours, "extra": {"requests_per_minute": requests_per_minute}}),
        "AIRFLOW_CONN_HTTP_DEFAULT": json.dumps(http),
    }


def measure(services: Services, sides: list[str], rounds: int) -> dict[str, list[Cost]]:
    """Run the DAGs in turn."""
    for side in sides:
        run(f"{side}_0", services)
    before = cpu_seconds(services.pids)
    time.sleep(IDLE)
    print(f"idle: {(cpu_seconds(services.pids) - before) * 60 / IDLE:.1f} CPU seconds a minute", flush=True)
    costs: dict[str, list[Cost]] = {side: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            costs[side].append(run(f"{side}_{number}", services))
    return costs


def report(costs: dict[str, list[Cost]], tasks: int) -> None:
    """Print medians, and their ratios."""
    print(f"{'':8} {'wall/s':>9} {'CPU/s':>9} {'wall a campaign':>16} {'CPU a campaign':>15}   median of the rounds")
    medians = {}
    for side, taken in costs.items():
        wall, cpu = (statistics.median(each) for each in zip(*taken, strict=True))
        medians[side] = Cost(wall, cpu)
        print(f"{side:8} {wall:9.1f} {cpu:9.1f} {wall / tasks:16.2f} {cpu / tasks:15.2f}")
    for one, other in (("ours", "nothing"), ("ours", "http"), ("http", "nothing")):
        if one in medians and other in medians:
            wall, cpu = (mine / its for mine, its in zip(medians[one], medians[other], strict=True))
            print(f"{one} / {other}: wall {wall:.2f}, CPU {cpu:.2f}")


class Services(NamedTuple):
    """
    A running Airflow.

    :param home: Its folder.
    :param environment: The environment variables of its processes.
    :param pids: Its services.
    """

    home: Path
    environment: dict[str, str]
    pids: list[int]


def cpu_seconds(roots: list[int]) -> float:
    """Return the processor time of some processes, of their descendants, and of those of them that have ended."""
    children: dict[int, list[int]] = defaultdict(list)
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            pid = int(stat.parent.name)
            children[int(fields[1])].append(pid)
            ticks[pid] = sum(map(int, fields[11:15]))
    total, pending = 0, list(roots)
    while pending:
        pid = pending.pop()
        total += ticks.get(pid, 0)
        pending += children[pid]
    return total / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def airflow(home: Path, connections: dict[str, str]) -> Iterator[Services]:
    """Run an Airflow."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    environment = {
        # An installed package has its bytecode, too; otherwise, a checkout is compiled by each task anew.
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHONDONTWRITE"))},
        "AIRFLOW_HOME": str(home),
        **connections,
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
        yield Services(home, environment, [process.pid for process in processes])
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(dag_id: str, services: Services) -> Cost:
    """Run a DAG; return what it took."""
    while not query(services.home, "SELECT 1 FROM dag WHERE dag_id = ?", dag_id):
        time.sleep(1)
    before = cpu_seconds(services.pids)
    command = [sys.executable, "-m", "airflow", "dags", "trigger", dag_id]
    subprocess.run(command, env=services.environment, check=True, capture_output=True)
    sql = (
        "SELECT state, (julianday(end_date) - julianday(start_date)) * 86400 FROM dag_run "
        "WHERE dag_id = ? ORDER BY id DESC LIMIT 1"
    )
    while True:
        ((state, seconds),) = query(services.home, sql, dag_id)
        if state in ("success", "failed"):
            cost = Cost(float(seconds), cpu_seconds(services.pids) - before)
            print(f"{dag_id}: {state} in {cost.wall:.1f} s, {cost.cpu:.1f} CPU seconds", flush=True)
            if state == "failed":
                raise SystemExit("the DAG run failed")
            return cost
        time.sleep(1)


def query(home: Path, sql: str, *arguments: str) -> list[tuple]:
    """Ask Airflow's database."""
    with contextlib.closing(sqlite3.connect(home / "airflow.db", timeout=60)) as database:
        return database.execute(sql, arguments).fetchall()


if __name__ == "__main__":
    main()
