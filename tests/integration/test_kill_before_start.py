# SPDX-License-Identifier: Apache-2.0
"""
A user ends a task at each step before its start: none is sent, and what it started before is paused.

Beside them, the hours of a task close while the connection for its start is made.
"""

from __future__ import annotations

from textwrap import dedent

import psutil
import pytest
from services import IS_AIRFLOW_2, Services, wait_for

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(IS_AIRFLOW_2, reason="a task of Airflow 2 is broken off when it is told to end"),
]

#: What runs in the task's process. Each step waits until Airflow has told the task to end, and goes on a little later.
STEPS = """
import os
import time
from pathlib import Path

FOLDER = Path(os.environ["REACHED"])


def stop(step):
    if os.environ.get("VOICEGENIE_TASK") != step:
        return
    (FOLDER / step).touch()
    end = time.monotonic() + 900
    while not (FOLDER / f"{step}.told").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
"""

SECRETS = """
import os

from airflow.secrets import BaseSecretsBackend
from steps import stop


class SlowBackend(BaseSecretsBackend):
    def get_conn_value(self, conn_id, **kwargs):
        stop("secrets")
        return os.environ["SLOW_CONNECTION"]
"""

PLUGIN = """
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin
from steps import stop


class Listener:
    @hookimpl
    def on_task_instance_running(self, previous_state, task_instance):
        stop("listener")


class SlowPlugin(AirflowPlugin):
    name = "slow"
    listeners = [Listener()]
"""

DAG = """
import importlib.abc
import os
import sys
from datetime import datetime, timezone

from airflow.providers.common.compat.sdk import DAG
from airflow_provider_voicegenie.operators.campaign import CallingHours, PauseCampaignOperator, StartCampaignOperator
from steps import FOLDER, stop
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection


def campaign(ti):
    # The first thing that a task does with a DAG author's code.
    os.environ["VOICEGENIE_TASK"] = ti.task_id
    if ti.task_id in ("macro", "mapped", "pause"):
        stop(ti.task_id)
    if ti.task_id == "resume":
        if (FOLDER / "rendered").exists():
            stop("resume")
        (FOLDER / "rendered").touch()
    return ti.task_id


class Told:
    def on_kill(self):
        super().on_kill()
        (FOLDER / f"{self.task_id}.told").touch()


class Start(Told, StartCampaignOperator):
    def pre_execute(self, context):
        stop("pre_execute")


class Pause(Told, PauseCampaignOperator):
    pass


class SlowConnection(HTTPConnection):
    # The second request is the start: its connection is made, and none of it was sent.

    made = 0

    def connect(self):
        super().connect()
        SlowConnection.made += 1
        if SlowConnection.made == 2:
            stop("handshake")
            if os.environ["VOICEGENIE_TASK"] == "hours":
                (FOLDER / "closed").touch()


def is_closed(day):
    return (FOLDER / "closed").exists()


HTTPConnectionPool.ConnectionCls = SlowConnection


class SlowImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "airflow_provider_voicegenie.start.run":
            stop("import")
        return None


sys.meta_path.insert(0, SlowImport())
once = dict(schedule="@once", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), max_active_tasks=50)
with DAG("killed", user_defined_macros={"campaign": campaign}, **once):
    for step in ("macro", "pre_execute", "callback", "listener", "import", "secrets", "handshake", "resume"):
        Start(
            task_id=step,
            campaign_id="{{ campaign(ti) }}",
            on_execute_callback=lambda context: stop("callback"),
            wait_for_completion=step == "resume",
            deferrable=True,
            completion_timeout=1 if step == "resume" else None,
        )
    Start.partial(task_id="mapped").expand(campaign_id=["{{ campaign(ti) }}"])
    Pause(task_id="pause", campaign_id="{{ campaign(ti) }}")
    Start(
        task_id="hours",
        campaign_id="{{ campaign(ti) }}",
        calling_hours=CallingHours("00:00", "23:59:59.999999", "UTC", except_dates=is_closed),
        outcomes={"OUTSIDE_CALLING_HOURS": "skip"},
    )
"""

BEFORE_THE_START = ("macro", "mapped", "pre_execute", "callback", "listener", "import", "secrets")


def test_a_task_that_a_user_ends_before_its_first_request_sends_none(airflow, voicegenie_sandbox, tmp_path):
    reached, modules, plugins = (tmp_path / name for name in ("reached", "modules", "plugins"))
    airflow.dags = tmp_path / "dags"
    for folder in (reached, modules, plugins, airflow.dags):
        folder.mkdir()
    (modules / "steps.py").write_text(STEPS)
    (modules / "slow_secrets.py").write_text(SECRETS)
    (plugins / "slow_plugin.py").write_text(PLUGIN)
    (airflow.dags / "dag.py").write_text(dedent(DAG))
    airflow.environment |= {
        "SLOW_CONNECTION": airflow.environment.pop("AIRFLOW_CONN_VOICEGENIE_DEFAULT"),
        "REACHED": str(reached),
        "PYTHONPATH": str(modules),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(plugins),
        "AIRFLOW__SECRETS__BACKEND": "slow_secrets.SlowBackend",
    }
    for step in (*BEFORE_THE_START, "handshake", "resume", "pause", "hours"):
        voicegenie_sandbox.add_campaign(id=step, total_count=10**6, status="running" if step == "pause" else "paused")

    def pid_of(step):
        return airflow.query("SELECT pid FROM task_instance WHERE task_id = ?", step)[0][0]

    def state_of(step):
        return airflow.query("SELECT state FROM task_instance WHERE task_id = ?", step)[0][0]

    with Services(airflow) as services:
        services.start("scheduler")
        services.start("triggerer")
        left = {*BEFORE_THE_START, "handshake", "resume", "pause"}
        pids = {}
        while left:
            step = wait_for(
                f"one of {left}", lambda: next((step for step in sorted(left) if (reached / step).exists()), None)
            )
            left.remove(step)
            pids[step] = pid_of(step)
            ((run_id,),) = airflow.query("SELECT run_id FROM dag_run WHERE dag_id = 'killed'")
            task = "mapped/0" if step == "mapped" else step
            services.request("PATCH", f"dags/killed/dagRuns/{run_id}/taskInstances/{task}", new_state="failed")
        for step, pid in pids.items():
            wait_for(f"the end of {step}", lambda pid=pid: not psutil.pid_exists(pid))
            assert (reached / f"{step}.told").exists()
        wait_for("the end of hours", lambda: state_of("hours") not in (None, "scheduled", "queued", "running"))
        assert (state_of("hours"), (reached / "closed").exists()) == ("skipped", True)
    requests = {(request.operation, request.campaign_id) for request in list(voicegenie_sandbox.sandbox.requests)}
    assert {campaign_id for _, campaign_id in requests} == {"handshake", "resume", "hours"}
    # They were read before, and the starts that were about to be sent were not.
    assert {operation for operation, campaign_id in requests if campaign_id != "resume"} == {"get"}
    # What it started before it was ended is paused.
    assert (voicegenie_sandbox.start_count("resume"), voicegenie_sandbox.status("resume")) == (1, "paused")
    assert voicegenie_sandbox.status("pause") == "running"
