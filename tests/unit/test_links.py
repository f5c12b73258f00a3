# SPDX-License-Identifier: Apache-2.0
"""The link to a task's campaign: where it leads, and that a task never fails for it."""

from __future__ import annotations

import contextlib
import json
from unittest.mock import MagicMock

import airflow
import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    BaseOperatorLink,
    TaskInstanceState,
    XCom,
)
from helpers.leaks import MARKED_KEY
from helpers.tasks import TaskInstance, context

from airflow_provider_voicegenie.campaign_task import CampaignTask
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.links import CampaignLink
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.rules.outcomes import VoiceGenieRetryException
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor, CampaignReadySensor

KEY = "_link_CampaignLink"


@pytest.fixture
def sandbox(voicegenie_sandbox, monkeypatch):
    def connect(**extra):
        connection = json.loads(voicegenie_sandbox.connection(max_attempts=1, **extra))
        monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", json.dumps(connection))

    voicegenie_sandbox.connect = connect
    connect()
    return voicegenie_sandbox


TASKS = {
    "start": lambda run: StartCampaignOperator(task_id="t", campaign_id="ready").execute(run),
    "start of a running one": lambda run: StartCampaignOperator(task_id="t", campaign_id="running").execute(run),
    "pause": lambda run: PauseCampaignOperator(task_id="t", campaign_id="running").execute(run),
    "pause of a draft": lambda run: PauseCampaignOperator(task_id="t", campaign_id="draft").execute(run),
    "ready": lambda run: CampaignReadySensor(task_id="t", campaign_id="ready").poke(run),
    "completed": lambda run: CampaignCompletedSensor(task_id="t", campaign_id="completed").poke(run),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("template", [None, "https://dashboard.example.com/campaigns/{campaign_id}?tab=calls"])
def test_each_task_keeps_its_link(sandbox, name, template):
    if template is not None:
        sandbox.connect(campaign_url=template)
    run = context()
    try:
        TASKS[name](run)
    except (AirflowFailException, AirflowSkipException):
        assert name in ("start of a running one", "pause of a draft")
    campaign_id = {"start": "ready", "pause of a draft": "draft", "ready": "ready", "completed": "completed"}
    expected = (template or f"{sandbox.url}/#campaign-{{campaign_id}}").replace(
        "{campaign_id}", campaign_id.get(name, "running")
    )
    assert run["ti"].xcom.pop("campaign_id", "ready") == "ready"
    assert run["ti"].xcom == {KEY: expected}


def test_an_id_is_escaped(sandbox):
    sandbox.connect(campaign_url="https://dashboard.example.com/{campaign_id}")
    assert VoiceGenieHook().campaign_url("a/b?c#d é") == "https://dashboard.example.com/a%2Fb%3Fc%23d%20%C3%A9"


def test_there_is_no_link_where_nobody_said_where_it_leads(sandbox):
    sandbox.connect(campaign_url=None)
    assert VoiceGenieHook().campaign_url("ready") is None


def test_a_task_does_not_fail_for_its_link(sandbox, monkeypatch):
    def no_xcom(task_instance, key, value):
        if key == KEY:
            raise RuntimeError("Airflow is not there")

    monkeypatch.setattr(TaskInstance, "xcom_push", no_xcom)
    assert TASKS["start"](context())["started_by_task"]


def test_a_sensor_keeps_its_link_once(sandbox, monkeypatch):
    kept = []
    monkeypatch.setattr(TaskInstance, "xcom_push", lambda *_, key, value: kept.append(value))
    sensor, run = CampaignReadySensor(task_id="t", campaign_id="draft"), context()
    for _ in range(3):
        assert not sensor.poke(run).is_done
    assert kept == [f"{sandbox.url}/#campaign-draft"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_without_a_link_keeps_none_and_says_so_when_it_is_asked(monkeypatch, name):
    """Airflow asks for it at the end of the task, and an XCom that is not there leaves an error in the log."""
    monkeypatch.setattr(XCom, "get_value", lambda **_: 1 / 0)
    connection = {"conn_type": "voicegenie", "host": "http://127.0.0.1:1", "password": MARKED_KEY}
    monkeypatch.setenv("AIRFLOW_CONN_VOICEGENIE_DEFAULT", json.dumps({**connection, "extra": {"max_attempts": 1}}))
    tasks, keep_link = [], CampaignTask.keep_link

    def noting_keep_link(task, *arguments):
        tasks.append(task)
        keep_link(task, *arguments)

    monkeypatch.setattr(CampaignTask, "keep_link", noting_keep_link)
    run = context()
    with contextlib.suppress(VoiceGenieRetryException):
        TASKS[name](run)
    assert run["ti"].xcom == {}
    assert CampaignLink().get_link(tasks[0], ti_key=None) == ""


@pytest.mark.parametrize("url", ["https://dashboard.example.com/{campaign_id}", None])
def test_airflow_does_not_store_the_link_once_more(sandbox, monkeypatch, url):
    monkeypatch.setattr(XCom, "get_value", lambda **_: 1 / 0)
    sandbox.connect(campaign_url=url)
    operator = StartCampaignOperator(task_id="t", campaign_id="ready")
    # It may be ended before it looks at its campaign, and is asked then.
    assert operator.operator_extra_links[0].get_link(operator, ti_key=None) == ""
    operator.execute(context())
    assert list(operator.operator_extra_links) == []
    assert [link.name for link in StartCampaignOperator.operator_extra_links] == [CampaignLink.name]


def test_the_links_of_a_subclass_stay(sandbox):
    class Other(BaseOperatorLink):
        name = "other"

        def get_link(self, operator, *, ti_key):
            return ""

    class Starting(StartCampaignOperator):
        operator_extra_links = (CampaignLink(), Other())

    operator = Starting(task_id="t", campaign_id="ready")
    operator.execute(context())
    assert [link.name for link in operator.operator_extra_links] == ["other"]


@pytest.mark.skipif(airflow.__version__.startswith("2."), reason="Airflow 2 asks for links when it shows them")
@pytest.mark.parametrize("stores", [True, False])
def test_what_airflow_stores_at_the_end(sandbox, monkeypatch, stores):
    from airflow.sdk.execution_time import task_runner

    stored = []
    monkeypatch.setattr(task_runner, "_xcom_push_to_db", lambda ti, key, value: stored.append((key, value)))
    monkeypatch.setattr(task_runner, "get_listener_manager", lambda: MagicMock())
    operator = StartCampaignOperator(task_id="t", campaign_id="ready")
    if stores:
        operator.execute(context())
    instance = MagicMock(task=operator, start_date=None)
    task_runner.finalize(instance, TaskInstanceState.SUCCESS, {}, MagicMock())
    assert stored == ([] if stores else [(KEY, "")])


def test_the_link_is_what_the_task_has_kept(monkeypatch):
    kept = {KEY: "https://dashboard.example.com/ready"}
    monkeypatch.setattr(XCom, "get_value", lambda *, key, ti_key: kept.get(key))
    assert CampaignLink().get_link(None, ti_key=None) == "https://dashboard.example.com/ready"
    kept.clear()
    assert CampaignLink().get_link(None, ti_key=None) == ""
