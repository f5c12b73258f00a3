# SPDX-License-Identifier: Apache-2.0
"""A real Airflow on SQLite, in processes of its own: one for a test alone, and one that tests share."""

from __future__ import annotations

import pytest
from helpers.leaks import MARKED_KEY
from services import Services
from shared import SharedAirflow
from throwaway import Airflow

from airflow_provider_voicegenie.sandbox.pytest_plugin import SandboxForTests
from airflow_provider_voicegenie.sandbox.server import running
from airflow_provider_voicegenie.sandbox.service import Sandbox


def pytest_itemcollected(item):
    """Let one process of pytest-xdist have all tests that share an Airflow."""
    if "shared" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("shared"))


#: The files whose tests take longest. If they came last, some processes would wait for the others.
LONGEST = ("test_real_airflow", "test_ends_at_once", "test_examples", "test_crashes", "test_clears")


def pytest_collection_modifyitems(items):
    """Begin with those that share an Airflow, as their process has most to do, and with those that take longest."""

    def place(item):
        name = item.path.stem
        if item.get_closest_marker("xdist_group") is not None:
            return -1
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


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
        timeout=200, requests_per_minute=6000
    )
    yield airflow
    airflow.check_for_the_key()


@pytest.fixture(scope="session")
def shared_by_all(tmp_path_factory, migrated_database):
    home = tmp_path_factory.mktemp("airflow-shared")
    sandbox = Sandbox(api_key=MARKED_KEY)
    with running(sandbox) as url:
        shared = SharedAirflow(home, SandboxForTests(sandbox, url))
        shared.database.write_bytes(migrated_database)
        # The API server writes what a user posts into its audit log, less what it masks.
        shared.environment["AIRFLOW__CORE__HIDE_SENSITIVE_VAR_CONN_FIELDS"] = "True"
        with Services(shared) as shared.services:
            del shared.environment["AIRFLOW__CORE__HIDE_SENSITIVE_VAR_CONN_FIELDS"]
            shared.services.start("scheduler")
            shared.services.start("triggerer")
            yield shared
        # Once for all tests, also for what Airflow keeps when it ends.
        shared.check_for_the_key()
        shared.check_for_people()


@pytest.fixture
def shared(shared_by_all):
    """The Airflow of all tests that leave it as they found it; its sandbox is ``shared.sandbox``."""
    shared_by_all.begin()
    yield shared_by_all
    shared_by_all.end()
