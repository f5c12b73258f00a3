# SPDX-License-Identifier: Apache-2.0
"""An Airflow in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import airflow as installed_airflow
from helpers.leaks import leak_in

ROOT = Path(__file__).parents[2]

#: Seconds for which anything is waited for. They bound a hang, on the slowest of machines.
PATIENCE = 900

AIRFLOW_VERSION = tuple(map(int, installed_airflow.__version__.split(".")[:2]))

#: What makes a connection to the database see the last try of each task only, by the names that tests use. From 3.4 on,
#: Airflow keeps each try with its own data.
LAST_TRIES = (
    (
        "CREATE TEMPORARY VIEW task_instance AS "
        "SELECT every_try.*, region_index AS map_index FROM {schema}.task_instance AS every_try WHERE working_set",
        *(
            f"CREATE TEMPORARY VIEW {name} AS SELECT dag_id, task_id, run_id, map_index, stored.* "
            f"FROM {{schema}}.{table} AS stored JOIN task_instance ON task_instance.id = task_instance_id"
            for name, table in (("xcom", "xcom_v2"), ("rendered_task_instance_fields", "rtif_v2"))
        ),
    )
    if AIRFLOW_VERSION >= (3, 4)
    else ()
)

_RUN_ALL = """
import json, sys
from airflow.cli import cli_parser
parser = cli_parser.get_parser()
for command in json.loads(sys.argv[1]):
    arguments = parser.parse_args(command)
    try:
        arguments.func(arguments)
    except SystemExit:
        pass
    print("=== the end of a command ===", flush=True)
"""


@dataclass
class Airflow:
    """
    A throw-away Airflow.

    :param home: Its home.
    :param dags: Its DAG folder.
    :param environment: Further environment variables.
    """

    home: Path
    dags: Path = ROOT / "example_dags"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.home / "airflow.db"

    def variables(self) -> dict[str, str]:
        return {
            # Without its bytecode, each process of Airflow takes twice as long to begin.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("AIRFLOW") and name != "PYTHONDONTWRITEBYTECODE"
            },
            # Airflow 2 starts its tasks by the name `airflow`.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            # On a busy machine, another process may keep the database locked for longer than the usual five seconds.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}?timeout=60",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
            # Airflow would mask the key in its logs; here it must not get there at all.
            "AIRFLOW__CORE__HIDE_SENSITIVE_VAR_CONN_FIELDS": "False",
            **self.environment,
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "airflow", *arguments]
        result = subprocess.run(
            command, env=self.variables(), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        with (self.home / "everything-printed.log").open("a") as log:
            log.write(f"$ airflow {' '.join(arguments)}\n{result.stdout}{result.stderr}\n")
        return result

    def run_all(self, commands: list[list[str]]) -> list[str]:
        """Run several commands in one process, which saves their start; return what each printed."""
        command = [sys.executable, "-c", _RUN_ALL, json.dumps(commands)]
        result = subprocess.run(
            command, env=self.variables(), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        (self.home / "everything-printed.log").write_text(result.stdout + result.stderr)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.split("=== the end of a command ===")[:-1]

    def states(self, dag_id: str) -> list[dict[str, str]]:
        """Return the states of the tasks of each run, mapped ones with their index."""
        rows = self.query(
            "SELECT run_id, task_id, map_index, task_instance.state FROM task_instance "
            "JOIN dag_run USING (dag_id, run_id) WHERE dag_id = ? ORDER BY dag_run.id, task_id, map_index",
            dag_id,
        )
        runs: dict[str, dict[str, str]] = {}
        for run_id, task, index, state in rows:
            runs.setdefault(run_id, {})[task if index < 0 else f"{task}[{index}]"] = state
        return list(runs.values())

    def test_dag(self, dag_id: str, date: str = "2026-01-01T00:00:00+00:00", **conf: object) -> dict[str, str]:
        """Run a DAG; return the states of its tasks, mapped ones with their index."""
        result = self.run("dags", "test", dag_id, date, *(["--conf", json.dumps(conf)] if conf else []))
        runs = self.states(dag_id)
        assert runs, result.stdout + result.stderr
        return runs[-1]

    def returned(self, task_id: str, dag_id: str = "%") -> list[object]:
        """Return what tasks of this name returned to XCom, those of one DAG or of any."""
        query = "SELECT value FROM xcom WHERE dag_id LIKE ? AND task_id = ? AND key = 'return_value'"
        rows = self.query(query, dag_id, task_id)
        return [json.loads(value) for (value,) in rows]

    def query(self, sql: str, *arguments: str) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=PATIENCE)) as database:
            for view in LAST_TRIES:
                database.execute(view.format(schema="main"))
            return database.execute(sql, arguments).fetchall()

    def change(self, sql: str, *arguments: object) -> None:
        with contextlib.closing(sqlite3.connect(self.database, timeout=PATIENCE)) as database, database:
            database.execute(sql, arguments)

    def everything_kept(self) -> bytes:
        """Return all that Airflow printed, logged and stored."""
        return b"".join(path.read_bytes() for path in self.home.rglob("*") if path.is_file())

    def check_for_the_key(self) -> None:
        """Fail where the key is in anything that Airflow printed, logged or stored."""
        for path in self.home.rglob("*"):
            if path.is_file():
                for line in path.read_bytes().split(b"\n"):
                    # Airflow 3.0 itself prints each value it is asked to mask, in a line of this form.
                    leak = None if b"MaskSecret(value=" in line else leak_in(line)
                    assert leak is None, f"{path}: {leak}"
