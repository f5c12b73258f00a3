# SPDX-License-Identifier: Apache-2.0
"""Catch-up and backfill runs, made and run by a real scheduler."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from textwrap import dedent

import airflow as installed_airflow
import pytest

pytestmark = pytest.mark.airflow

IS_AIRFLOW_2 = installed_airflow.__version__.startswith("2.")
PATIENCE = 150

DAGS = """
from datetime import datetime, timedelta, timezone
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

begin, end = (datetime(2026, 1, day, tzinfo=timezone.utc) for day in (5, 7))
with DAG("late", schedule="@daily", start_date=begin, end_date=end, catchup=True):
    StartCampaignOperator(task_id="start", campaign_id="ready", max_lateness=timedelta(hours=1))
with DAG("history", schedule="@daily", start_date=begin, end_date=end, catchup=False):
    StartCampaignOperator(task_id="start", campaign_id="paused", outcomes={"RUN_TOO_LATE": "fail"}, max_lateness=1e9)
"""


@contextlib.contextmanager
def services(airflow, *commands):
    """Run Airflow's services, each with a log of its own, and end them by their ids."""
    with contextlib.ExitStack() as stack:
        processes = []
        for command in commands:
            log = stack.enter_context((airflow.home / f"{command[0]}.log").open("wb"))
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "airflow", *command],
                    env=airflow.variables(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        try:
            yield processes
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
                # What is left of it and of its children, which share its session.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(what, condition):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.5)
    return pytest.fail(f"waited {PATIENCE} s in vain for {what}")


def states(airflow, dag_id, run_type):
    return airflow.query(
        "SELECT task_instance.state FROM task_instance JOIN dag_run USING (dag_id, run_id) "
        "WHERE dag_id = ? AND run_type = ?",
        dag_id,
        run_type,
    )


def all_ended(airflow, dag_id, run_type, least):
    rows = [state for (state,) in states(airflow, dag_id, run_type)]
    return rows if len(rows) >= least and set(rows) <= {"skipped", "success", "failed", "up_for_retry"} else None


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_catch_up_and_backfill_phone_nobody(airflow, voicegenie_sandbox, tmp_path):
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "dags.py").write_text(dedent(DAGS))
    port = free_port()
    airflow.environment |= {
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor" if IS_AIRFLOW_2 else "LocalExecutor",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API_AUTH__JWT_SECRET": "for this test only, and long enough for the algorithm in use",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
    }
    if IS_AIRFLOW_2:
        commands = [("scheduler",)]
    else:
        commands = [("api-server", "--port", str(port), "--workers", "1"), ("scheduler",), ("dag-processor",)]
    with services(airflow, *commands):
        late = wait_for("catch-up runs", lambda: all_ended(airflow, "late", "scheduled", 2))
        if IS_AIRFLOW_2:
            made = airflow.run("dags", "backfill", "-s", "2026-01-05", "-e", "2026-01-06", "history")
        else:
            dates = ("--from-date", "2026-01-05", "--to-date", "2026-01-06")
            made = airflow.run("backfill", "create", "--dag-id", "history", *dates)
        assert made.returncode == 0, made.stdout + made.stderr
        backfilled = wait_for("backfill runs", lambda: all_ended(airflow, "history", "backfill", 2))
    assert set(late) == {"skipped"}
    assert set(backfilled) == {"skipped"}
    assert len(voicegenie_sandbox.sandbox.requests) == 0
    kept = airflow.everything_kept()
    assert b"RUN_TOO_LATE: the task is skipped" in kept
    assert b"BACKFILL_RUN: the task is skipped" in kept
