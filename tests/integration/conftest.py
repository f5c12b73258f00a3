# SPDX-License-Identifier: Apache-2.0
"""A real Airflow on SQLite, in processes of its own."""

from __future__ import annotations

import pytest
from throwaway import Airflow


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory):
    airflow = Airflow(tmp_path_factory.mktemp("airflow-template"))
    result = airflow.run("db", "migrate")
    assert result.returncode == 0, result.stdout + result.stderr
    return airflow.database.read_bytes()


@pytest.fixture
def airflow(tmp_path, migrated_database, voicegenie_sandbox):
    airflow = Airflow(tmp_path)
    airflow.database.write_bytes(migrated_database)
    airflow.environment["AIRFLOW_CONN_VOICEGENIE_DEFAULT"] = voicegenie_sandbox.connection(
        timeout=5, requests_per_minute=6000
    )
    yield airflow
    airflow.check_for_the_key()
