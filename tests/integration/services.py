# SPDX-License-Identifier: Apache-2.0
"""Airflow's services as real processes, which a test may kill one by one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest
from cryptography.fernet import Fernet
from throwaway import AIRFLOW_VERSION, PATIENCE

IS_AIRFLOW_2 = AIRFLOW_VERSION < (3,)


class Services:
    """
    The services of one Airflow. A context: whatever still runs at its end is ended.

    :param airflow: The Airflow.
    :param kills: Whether the test ends processes, which Airflow then misses within seconds. Without that it is as
        patient as it usually is: on a busy machine, it would take processes for dead that are merely slow.
    """

    def __init__(self, airflow, *, kills=False):
        self._airflow = airflow
        self._processes = {}
        self._children = {}
        self._port = free_port()
        airflow.environment |= {
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor" if IS_AIRFLOW_2 else "LocalExecutor",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self._port}/execution/",
            # Airflow forks all its workers before it does anything, 32 of them if it is not told otherwise.
            "AIRFLOW__CORE__PARALLELISM": airflow.environment.get("AIRFLOW__CORE__PARALLELISM", "4"),
            # A task that gets no response from the API server ends, and Airflow does not always try it again.
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "300",
            # Processes that begin at the same time would each make one up.
            "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__API_AUTH__JWT_SECRET": "for this test only, and long enough for the algorithm in use",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
        }
        if kills:
            airflow.environment |= {
                "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
                "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
                "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
                "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
                "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
            }

    def __enter__(self):
        if not IS_AIRFLOW_2:
            self.start("api-server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1")
            self.start("dag-processor")
            # Without it a task's process cannot begin, and Airflow does not try that one again.
            with contextlib.ExitStack() as stack:
                stack.push(self)
                wait_for("the API server", self._answers)
                stack.pop_all()
        return self

    def __exit__(self, *error):
        for name, process in self._processes.items():
            self._children[name] = descendants(process.pid)
            process.terminate()
        for name in list(self._processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes[name].wait(timeout=10)
            self.kill(name)

    def start(self, name, *arguments, known_as=None):
        if name in ("scheduler", "triggerer"):
            # One process less, which would listen on all addresses.
            arguments = ("--skip-serve-logs", *arguments)
        with (self._airflow.home / f"{known_as or name}.log").open("ab") as log:
            self._processes[known_as or name] = subprocess.Popen(
                [sys.executable, "-m", "airflow", name, *arguments],
                env=self._variables(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _variables(self, name):
        variables = self._airflow.variables()
        if name == "api-server":
            # Its event loop waits for a lock that a request of its own holds, which needs the loop to give it back. So
            # it must give up soon; whoever asked it asks again.
            connection = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
            variables[connection] = variables[connection].replace("?timeout=60", "?timeout=3")
        return variables

    def kill(self, name):
        """End a service and its children at once, as a machine that crashes does."""
        process = self._processes.pop(name)
        # Some put themselves into a group of their own.
        children = stopped_descendants(process) | self._children.pop(name, set())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()

    def freeze(self, name):
        """Stop a service and its children, as a machine that hangs does."""
        stopped_descendants(self._processes[name])

    def thaw(self, name):
        """Let a frozen service go on."""
        process = self._processes[name]
        for child in descendants(process.pid):
            child.resume()
        process.send_signal(signal.SIGCONT)

    def stop(self, name):
        """End a service the way an administrator does."""
        self._children[name] = descendants(self._processes[name].pid)
        self._processes[name].terminate()
        self._processes[name].wait(timeout=PATIENCE)
        self.kill(name)

    def _answers(self):
        """Whether the API server is up."""
        try:
            return bool(self.request("GET", "version"))
        except OSError:
            return False

    def request(self, method, path, **body):
        """Ask Airflow's REST API."""
        base = f"http://127.0.0.1:{self._port}"
        with urllib.request.urlopen(f"{base}/auth/token", timeout=PATIENCE) as answer:
            token = json.load(answer)["access_token"]
        request = urllib.request.Request(
            f"{base}{path}" if path.startswith("/") else f"{base}/api/v2/{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        return json.loads(answer_to(request))


def answer_to(request):
    for attempts_left in range(9, -1, -1):
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            # Where processes share a database on SQLite, one may find it locked, even after it has done its work.
            if error.code == 409 and attempts_left < 9:
                return b"{}"
            if error.code not in (500, 503) or not attempts_left:
                raise
            time.sleep(1)
    return None


def descendants(pid):
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def stopped_descendants(process):
    """Stop a process and its descendants, so that no new one comes up while they are killed; return those."""
    stopped = set()
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGSTOP)
    while new := descendants(process.pid) - stopped:
        for child in new:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.suspend()
        stopped |= new
    return stopped


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(what, condition, *, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.3)
    return pytest.fail(f"waited {patience} s in vain for {what}")
