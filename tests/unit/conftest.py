# SPDX-License-Identifier: Apache-2.0
"""What all unit tests may ask for."""

from __future__ import annotations

import sys

import pytest
from helpers.clock import Clock
from helpers.leaks import person_in
from helpers.tasks import shorten_times

from airflow_provider_voicegenie.timing import timing

#: Airflow 3 has it twice.
_SHARED_MASKERS = [f"{root}._shared.secrets_masker.secrets_masker" for root in ("airflow", "airflow.sdk")]


@pytest.fixture(autouse=True)
def _forget_secrets():
    """
    Let Airflow forget the connections of the tests before.

    It masks all that a process ever knew with one expression, which it compiles anew for each connection.
    """
    yield
    for name in ("airflow.utils.log.secrets_masker", *_SHARED_MASKERS):
        if (module := sys.modules.get(name)) is not None and hasattr(module, "_secrets_masker"):
            masker = module._secrets_masker()
            masker.patterns, masker.replacer = set(), None


@pytest.fixture
def said(caplog):
    """Return what returns the lines that the provider has logged since it was last asked."""
    caplog.set_level("INFO", "airflow_provider_voicegenie")

    def lines():
        found = [record for record in caplog.records if record.name.startswith("airflow_provider_voicegenie")]
        caplog.clear()
        return [record.getMessage() for record in found]

    return lines


@pytest.fixture
def nobody_is_named(caplog):
    """Whatever a test does, its log does not show the marked person."""
    caplog.set_level("DEBUG")
    yield
    assert person_in(caplog.text) is None


@pytest.fixture
def clock(monkeypatch):
    """Let time pass only while all sleep, and then at once, for the package and the sandbox."""
    clock = Clock()
    clock.start(monkeypatch)
    return clock


@pytest.fixture
def held(clock, monkeypatch):
    """Let requests be delayed and held by the clock."""
    clock.hold_requests(monkeypatch)


@pytest.fixture
def sandbox(clock, voicegenie_sandbox, monkeypatch):
    """A sandbox with a campaign to start and one to follow, neither of which ends by itself in time."""
    shorten_times(monkeypatch)
    monkeypatch.setattr(timing, "connection_interval_after_error", 0.0)
    connection = voicegenie_sandbox.connection(max_attempts=1, timeout=60, requests_per_minute=60_000)
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", connection)
    voicegenie_sandbox.add_campaign(id="long", total_count=10_000)
    voicegenie_sandbox.add_campaign(id="followed", status="running", total_count=10_000)
    return voicegenie_sandbox
