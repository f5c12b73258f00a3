# SPDX-License-Identifier: Apache-2.0
"""DAGs in a real Airflow, against the sandbox over real HTTP."""

from __future__ import annotations

import json
from textwrap import dedent
from urllib.parse import quote

import airflow as installed_airflow
import pytest
from helpers.leaks import MARKED_KEY

from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.sandbox.pytest_plugin import SandboxForTests
from airflow_provider_voicegenie.sandbox.server import running
from airflow_provider_voicegenie.sandbox.service import Sandbox

pytestmark = pytest.mark.airflow


def write_dag(airflow, tmp_path, body):
    airflow.dags = tmp_path / "dags"
    airflow.dags.mkdir()
    (airflow.dags / "dag.py").write_text(
        dedent("""
            from datetime import timedelta
            from airflow.providers.common.compat.sdk import DAG
            from airflow_provider_voicegenie.operators.campaign import *
            from airflow_provider_voicegenie.sensors.campaign import *
        """)
        + dedent(body)
    )


def test_calling_hours_and_prerequisites_survive_mapping_and_parsing(airflow, voicegenie_sandbox, tmp_path):
    write_dag(
        airflow,
        tmp_path,
        """
        with DAG("mapped", schedule=None):
            hours = CallingHours("00:00", "23:59:59.999999", "Europe/Berlin")
            ready = CampaignReadySensor.partial(
                task_id="ready", prerequisites=[HasContacts(minimum=5), hours], poke_interval=1, timeout=5
            ).expand(campaign_id=["ready"])
            start = StartCampaignOperator.partial(
                task_id="start",
                calling_hours=hours,
                max_lateness=timedelta(hours=1),
                outcomes={Condition.NOT_FOUND: Outcome.SKIP},
            ).expand(campaign_id=["ready", "nobody"])
            ready >> start
        """,
    )
    assert airflow.test_dag("mapped") == {"ready[0]": "success", "start[0]": "success", "start[1]": "skipped"}


def test_the_key_stays_where_it_belongs(airflow, voicegenie_sandbox, tmp_path):
    """Every kind of ending, hostile ids included; the fixture then searches everything that Airflow kept."""
    host = voicegenie_sandbox.url.removeprefix("http://")
    forms = {
        "voicegenie_default": voicegenie_sandbox.connection(timeout=200, max_attempts=1),
        "as_uri": f"voicegenie://:{quote(MARKED_KEY, safe='')}@{host}/http?timeout=200&max_attempts=1",
    }
    airflow.environment |= {f"AIRFLOW_CONN_{name.upper()}": connection for name, connection in forms.items()}
    # To find out whether a start without a response took effect takes a minute.
    kinds = {"voicegenie_default": ("good", "echo", "redirect", "close"), "as_uri": ("good", "echo", "not_json")}
    odd_places = {
        "in_the_host": {"host": MARKED_KEY},
        "in_the_url": {"host": f"http://{MARKED_KEY}"},
        "as_user": {"host": f"https://{quote(MARKED_KEY, safe='')}@voicegenie.invalid"},
        "in_the_path": {"host": f"{voicegenie_sandbox.url}/{quote(MARKED_KEY, safe='')}"},
        "in_the_query": {"host": f"{voicegenie_sandbox.url}/?key={MARKED_KEY}"},
        "as_schema": {"schema": MARKED_KEY},
        "in_the_extra": {"extra": json.dumps({"api_key": MARKED_KEY, "timeout": MARKED_KEY})},
        "as_extra": {"extra": MARKED_KEY},
        "with_a_space": {"password": f" {MARKED_KEY}"},
        "with_a_line_end": {"password": f"{MARKED_KEY}\n"},
        "with_a_header": {"password": f"k\r\nx-more: {MARKED_KEY}"},
        "encoded": {"password": quote(MARKED_KEY, safe="")},
    }
    for name, fields in odd_places.items():
        complete = {"conn_type": "voicegenie", "host": voicegenie_sandbox.url, "password": MARKED_KEY, **fields}
        airflow.environment[f"AIRFLOW_CONN_{name.upper()}"] = json.dumps(complete)
    campaigns = {
        "good": "ready",
        "running": "always-running",
        "path": "../pauseTheCampaign/running",
        "query": "x?y=z",
        "fragment": "x#y",
        "dots": "%2e%2e",
        "line_end": "a\r\nx-api-key: b",
        "empty": "{{ '' }}",
        "long": "x" * 10_240,
        "other_script": "кампания",
    }
    write_dag(
        airflow,
        tmp_path,
        f"""
        with DAG("all", schedule=None):
            for task_id, campaign_id in {campaigns!r}.items():
                StartCampaignOperator(task_id=task_id, campaign_id=campaign_id)
            StartCampaignOperator.partial(task_id="number").expand(campaign_id=[42])
            for name in {list(odd_places)!r}:
                StartCampaignOperator(task_id=name, campaign_id="ready", voicegenie_conn_id=name)
            for form, kinds in {kinds!r}.items():
                for kind in kinds:
                    name = kind + "_" + form
                    StartCampaignOperator(task_id=name, campaign_id=name, voicegenie_conn_id=form)
            succeed = {{"CAMPAIGN_ALREADY_RUNNING": "succeed"}}
            CampaignReadySensor(task_id="sensor", campaign_id="ready", outcomes=succeed)
        """,
    )
    # Still running when the sensor comes to look, however slow the machine.
    voicegenie_sandbox.add_campaign(id="ready", total_count=10**6)
    faults = {
        "good": None,
        "echo": ("status", {"status": 400, "body": f"<p>{MARKED_KEY}</p>"}),
        "redirect": ("redirect", {"location": f"http://127.0.0.1:1/{MARKED_KEY}"}),
        "close": ("close", {}),
        "not_json": ("not_json", {}),
    }
    for form in forms:
        for name in kinds[form]:
            fault = faults[name]
            campaign = voicegenie_sandbox.add_campaign(id=f"{name}_{form}")
            if fault is not None:
                voicegenie_sandbox.inject(fault[0], "start", campaign_id=campaign.id, **fault[1])
    states = airflow.test_dag("all")
    assert {states.pop(name) for name in ("good", *(f"good_{form}" for form in forms))} == {"success"}
    assert states.pop("sensor") == "success"
    assert states.pop("running") == "skipped"
    assert set(states.values()) == {"failed"}, states
    assert voicegenie_sandbox.start_count("ready") == 1
    assert voicegenie_sandbox.status("always-running") == "running"
    kept = airflow.everything_kept()
    assert b"INVALID_CAMPAIGN_ID" in kept
    assert b"INVALID_CONNECTION" in kept


def test_the_command_line_shows_the_provider(airflow):
    commands = [
        ["providers", "list", "--output", "plain"],
        ["providers", "hooks", "--output", "plain"],
        ["providers", "get", "airflow-provider-voicegenie", "--full", "--output", "json"],
        ["providers", "behaviours", "--output", "json"],
    ]
    printed = {}
    for name, output in zip(("list", "hooks", "get", "behaviours"), airflow.run_all(commands), strict=True):
        printed[name] = output
        said = [line for line in output.splitlines() if "voicegenie" in line.lower()]
        assert not [line for line in said if "warning" in line.lower() or "error" in line.lower()]
    assert "airflow-provider-voicegenie" in printed["list"]
    assert "airflow_provider_voicegenie.hooks.voicegenie.VoiceGenieHook" in printed["hooks"].replace("\n", "")
    assert "airflow_provider_voicegenie" in printed["get"]
    if not installed_airflow.__version__.startswith(("3.0.", "3.1.")):  # where this command finds no provider's form
        assert "voicegenie" in printed["behaviours"]


@pytest.fixture
def service():
    """A sandbox beside which other hosts may be asked, too."""
    sandbox = Sandbox()
    with running(sandbox) as url:
        yield SandboxForTests(sandbox, url)


def test_the_connection_test_says_what_is_wrong(service, monkeypatch):
    url = service.url
    connections = {
        "good": {"host": url, "password": service.api_key},
        "wrong_key": {"host": url, "password": "wrong"},
        "no_key": {"host": url},
        "unknown_host": {"host": "https://voicegenie.invalid", "password": "k"},
        "closed_port": {"host": "http://127.0.0.1:1", "password": "k"},
        "not_tls": {"host": url.replace("http", "https"), "password": "k"},
        "another_api": {"host": f"{url}/v2", "password": "k"},
    }
    for name, fields in connections.items():
        connection = {"conn_type": "voicegenie", "extra": {"timeout": 20, "max_attempts": 1}, **fields}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))
    answers = {name: VoiceGenieHook(name).test_connection() for name in connections}
    assert answers["good"] == (True, "The VoiceGenie service accepts the API key.")
    assert {name for name, (good, _) in answers.items() if good} == {"good"}
    for name, words in {
        "wrong_key": "(401 UNAUTHORIZED). The service does not accept the API key of the connection: enter it again",
        "no_key": "Password (API key) is empty",
        "unknown_host": "cannot be resolved",
        "closed_port": "no connection to 127.0.0.1:1 could be made. Check host and port",
        "not_tls": "does not speak TLS",
        "another_api": "is a VoiceGenie API",
    }.items():
        assert words in answers[name][1], answers[name]
