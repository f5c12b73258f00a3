# SPDX-License-Identifier: Apache-2.0
"""The Airflow that tests share. It runs all the time, as its start costs more than most tests."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

from helpers.leaks import person_in
from services import IS_AIRFLOW_2, Services, wait_for
from throwaway import Airflow

if TYPE_CHECKING:
    from airflow_provider_voicegenie.sandbox.pytest_plugin import SandboxForTests


class SharedAirflow(Airflow):
    """
    An Airflow with all its services, and its sandbox. DAGs have names that no other test uses.

    A test may end the triggerer, if it starts another one.
    """

    def __init__(self, home: Path, sandbox: SandboxForTests) -> None:
        super().__init__(home, dags=home / "dags")
        self.sandbox = sandbox
        self.services: Services
        self.lineage = home / "lineage.jsonl"
        self.scratch = home / "scratch"
        for folder in (self.dags, self.scratch):
            folder.mkdir()
        self.environment |= {
            # Longer than any response that a test holds back.
            "AIRFLOW_CONN_VOICEGENIE_DEFAULT": sandbox.connection(timeout=600, requests_per_minute=6000),
            "TMPDIR": str(self.scratch),
            # New files are found at once, and none is read again: they do not change.
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "1",
            "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
            "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "1",  # the same for Airflow 2
            "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "3600",
            # A triggerer that a test ends is missed soon.
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
            # A trigger that nobody needs is removed soon.
            "AIRFLOW__SCHEDULER__PARSING_CLEANUP_INTERVAL": "2",
            # For the DAGs that ask for it, see `test_lineage_in_airflow.py`.
            "AIRFLOW__OPENLINEAGE__SELECTIVE_ENABLE": "True",
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
                {"type": "file", "log_file_path": str(self.lineage), "append": True}
            ),
            # All that a task has, as far as it is JSON, so that whoever is in it is found.
            "AIRFLOW__OPENLINEAGE__INCLUDE_FULL_TASK_INFO": "True",
        }

    def begin(self) -> None:
        """Put the sandbox back to its beginning."""
        sandbox = self.sandbox.sandbox
        sandbox.reset()
        sandbox.faults.clear()
        sandbox.requests.clear()
        self.sandbox.speed = 1

    def end(self) -> None:
        """Remove the test's DAGs and end what they wait for, so that nothing of them goes on."""
        for file in self.dags.iterdir():
            if file.is_file():
                file.unlink()
        sandbox = self.sandbox.sandbox
        sandbox.faults.clear()
        for campaign in sandbox.store.all():
            sandbox.store.change(campaign.id, status="completed")
        if not IS_AIRFLOW_2:  # which has none; Airflow 3 keeps those of a DAG whose file is gone
            self.change("DELETE FROM asset_watcher")
        left = "SELECT 1 FROM task_instance WHERE state IN ('running', 'deferred', 'queued', 'restarting')"
        wait_for("the end of all tasks", lambda: not self.query(left))
        wait_for("the end of all triggers", lambda: not self.query("SELECT 1 FROM trigger"))

    def add_dags(self, name: str, text: str) -> None:
        """Write a file of DAGs, and wait until Airflow has read it."""
        # By another name first, so that no half of it is read.
        draft = self.home / f"{name}.draft"
        draft.write_text(dedent(text))
        draft.rename(self.dags / f"{name}.py")

        def is_read() -> bool:
            errors = self.query("SELECT stacktrace FROM import_error WHERE filename LIKE ?", f"%{name}.py")
            assert not errors, errors[0][0]
            return bool(self.query("SELECT 1 FROM dag WHERE fileloc LIKE ?", f"%/{name}.py"))

        wait_for(f"the DAGs of {name}.py", is_read)

    def state(self, dag_id: str, task_id: str) -> str | None:
        """Return the state of a task that is in one run."""
        query = "SELECT state FROM task_instance WHERE dag_id = ? AND task_id = ?"
        return next((state for (state,) in self.query(query, dag_id, task_id)), None)

    def logs(self, dag_id: str, task_id: str = "*") -> str:
        """Return all that a task of a DAG, or all of them, have logged."""
        folder = self.home / "logs" / f"dag_id={dag_id}"
        return "".join(path.read_text() for path in folder.glob(f"*/task_id={task_id}/**/*.log*") if path.is_file())

    def check_for_people(self) -> None:
        """Fail where the marked person is in anything that Airflow printed, logged or stored."""
        for path in self.home.rglob("*"):
            if path.is_file():
                leak = person_in(path.read_bytes())
                assert leak is None, f"{path}: {leak}"
