# SPDX-License-Identifier: Apache-2.0
"""
The fixture ``voicegenie_sandbox``, for tests of DAGs that use this provider.

One argument is all a test needs::

    def test_reminder(voicegenie_sandbox):
        campaign = voicegenie_sandbox.add_campaign(total_count=3)
        dag.test(run_conf={"campaign_id": campaign.id})
        assert voicegenie_sandbox.start_count(campaign.id) == 1

If the module of the test has DAGs and Airflow's database is a SQLite, ``dag.test()`` works for them: the fixture lets
Airflow make its tables if there are none, and adds the DAGs' files to Airflow's bundles. A database of another kind may
be one that others use, so nothing is done to it.

Nothing is sent to another machine while a test has the fixture, whatever connection its DAGs name.

Pytest loads this module by itself if the provider is installed. The server is loaded when a test uses the fixture.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

# Pytest loads this module at each of its starts, so what only the fixture needs is imported in functions.
if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.settings import ClientSettings
    from airflow_provider_voicegenie.sandbox.campaign import SandboxCampaign
    from airflow_provider_voicegenie.sandbox.service import Sandbox


class SandboxForTests:
    """
    A running sandbox.

    :param sandbox: The sandbox itself, for everything that has no method here.
    :param url: Its base URL.
    """

    def __init__(self, sandbox: Sandbox, url: str) -> None:
        self.sandbox = sandbox
        self.url = url

    @property
    def api_key(self) -> str:
        """The key it accepts."""
        return self.sandbox.api_key

    def connection(self, **extra: Any) -> str:
        """
        Return an Airflow connection to it, as JSON for an environment variable.

        :param extra: Fields of the connection's extra.
        """
        from airflow_provider_voicegenie.sandbox.server import airflow_connection

        return airflow_connection(self.url, self.api_key, **extra)

    @property
    def speed(self) -> float:
        """How many times as fast time runs. Set it before a campaign runs, for tests that wait for its end."""
        return self.sandbox.store.speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self.sandbox.store.speed = speed

    def add_campaign(self, **fields: Any) -> SandboxCampaign:
        """
        Add a campaign. It can be started, unless the fields say otherwise.

        :param fields: Fields of :class:`~airflow_provider_voicegenie.sandbox.campaign.SandboxCampaign`.
        """
        from airflow_provider_voicegenie.sandbox.campaign import SandboxCampaign

        return self.sandbox.store.put(SandboxCampaign(**fields))

    def status(self, campaign_id: str) -> str:
        """Return a campaign's status."""
        return self.sandbox.store.find(campaign_id).status

    def start_count(self, campaign_id: str) -> int:
        """Return how often a campaign was started."""
        return self.sandbox.store.find(campaign_id).start_count

    def uploaded(self, campaign_id: str) -> list[str]:
        """Return the phone numbers that were uploaded to a campaign, as they were written."""
        return list(self.sandbox.store.find(campaign_id).contacts.numbers)

    def request_count(self, operation: str, campaign_id: str | None = None) -> int:
        """Return how many requests of a kind came; the kinds are those of :meth:`inject`."""
        return self.sandbox.count_requests(operation, campaign_id)

    def inject(self, kind: str, operation: str = "*", **fields: Any) -> None:
        """
        Inject a fault.

        :param kind: What goes wrong: one of :class:`~airflow_provider_voicegenie.sandbox.faults.FaultKind`.
        :param operation: In which request: ``start``, ``pause``, ``get``, ``list``, ``stats``, ``upload``, ``history``
            or ``quota``; ``*`` for every one.
        :param fields: Further fields of :class:`~airflow_provider_voicegenie.sandbox.faults.Fault`.
        """
        from airflow_provider_voicegenie.sandbox.faults import Fault, FaultKind

        self.sandbox.faults.add(Fault(FaultKind(kind), operation, **fields))


def _files_of_dags(module: object) -> list[str]:
    """Return the files of the DAGs that a module has, of its own or imported."""
    from airflow.providers.common.compat.sdk import DAG

    return sorted({each.fileloc for each in vars(module).values() if isinstance(each, DAG)})


def _is_sqlite() -> bool:
    from airflow import settings

    return settings.engine is not None and settings.engine.dialect.name == "sqlite"


def _prepare_database() -> None:
    """Let Airflow make its tables, if its database has none."""
    from airflow import settings
    from sqlalchemy import inspect

    engine = settings.engine
    if inspect(engine).has_table("dag_run"):
        return
    remedy = "Airflow's database has no tables, so no DAG can run in this test. Run once: airflow db migrate"
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  a command of ours
    # Another process of the same test run may have made them meanwhile.
    if done.returncode and not inspect(engine).has_table("dag_run"):
        pytest.fail(f"{remedy}. It failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", pytrace=False)


def _bundles_with(files: list[str]) -> str:
    """
    Return Airflow's DAG bundles and one for each file, as Airflow 3 reads them in its configuration.

    Its own come first, and all of them: it would disable those that are missing, and their DAGs.
    """
    from airflow.configuration import conf

    own: Any = conf.getjson("dag_processor", "dag_bundle_config_list", fallback=[])
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    return json.dumps([*(own or ()), *({"name": file, "classpath": local, "kwargs": {"path": file}} for file in files)])


def _send_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse requests of this process to other machines: a test phones nobody, whatever connection its DAG names."""
    from airflow_provider_voicegenie.api.errors import InvalidConnectionError
    from airflow_provider_voicegenie.api.session import BoundSession

    make = BoundSession.__init__

    def make_here(session: BoundSession, settings: ClientSettings) -> None:
        make(session, settings)
        hosts = {urlsplit(each).hostname for each in (settings.base_url, *settings.proxies.values())}
        if hosts - {"127.0.0.1", "::1", "localhost"}:
            raise InvalidConnectionError(
                f"{settings.connection} leads to {settings.address}. In a test with voicegenie_sandbox, nothing is "
                "sent to another machine. Let each connection lead to the sandbox: "
                'monkeypatch.setenv("AIRFLOW_CONN_...", voicegenie_sandbox.connection()).'
            )

    monkeypatch.setattr(BoundSession, "__init__", make_here)


@pytest.fixture
def voicegenie_sandbox(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[SandboxForTests]:
    """Run a sandbox, point the connection ``voicegenie_default`` to it, and let the DAGs of the module be tested."""
    from airflow_provider_voicegenie.sandbox.server import running
    from airflow_provider_voicegenie.sandbox.service import Sandbox

    module = request.node.getparent(pytest.Module)
    if module is not None and (files := _files_of_dags(module.obj)) and _is_sqlite():
        _prepare_database()
        # Airflow 3 tests a DAG only if it finds it in a bundle.
        monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", _bundles_with(files))
    _send_nothing_elsewhere(monkeypatch)
    sandbox = Sandbox()
    with running(sandbox) as url:
        running_sandbox = SandboxForTests(sandbox, url)
        monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", running_sandbox.connection())
        yield running_sandbox
