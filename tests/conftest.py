# SPDX-License-Identifier: Apache-2.0
"""Airflow gets a home of its own before anything imports it; no test touches the user's."""

from __future__ import annotations

import os
import tempfile

_HOME = tempfile.TemporaryDirectory(prefix="voicegenie-tests-")
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

import pytest  # noqa: E402  Airflow's home comes first
from helpers.leaks import MARKED_KEY, leak_in  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# How long an example takes says more about the machine than about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture
def voicegenie_sandbox(voicegenie_sandbox, monkeypatch):
    """The provider's own fixture, with a key that can be told from everything else."""
    voicegenie_sandbox.sandbox.api_key = MARKED_KEY
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", voicegenie_sandbox.connection())
    return voicegenie_sandbox


def pytest_collection_modifyitems(items):
    """Give tests with a real Airflow or a browser more time, unless they say how much they take."""
    for item in items:
        is_slow = item.get_closest_marker("airflow") or "browser" in item.path.parts
        if is_slow and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(2400))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail each test in which the key was printed or logged, at whatever level."""
    report = yield
    leak = leak_in(report.capstdout + report.capstderr + report.caplog)
    if report.passed and leak is not None:
        report.outcome = "failed"
        report.longrepr = f"The API key was printed or logged:\n{leak}"
    return report
