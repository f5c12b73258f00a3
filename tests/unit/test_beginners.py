# SPDX-License-Identifier: Apache-2.0
"""Mistakes of a first hour: each is refused as early as it can be seen, with the argument, the value and the remedy."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowFailException, AirflowSkipException
from helpers.tasks import context

from airflow_provider_voicegenie.api.errors import InvalidConnectionError
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator, StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.rules.outcomes import Condition
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor, CampaignReadySensor
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator

ROWS = [{"phone_number": "+4915112345678"}]
TASKS = [
    (StartCampaignOperator, {}),
    (PauseCampaignOperator, {}),
    (CampaignReadySensor, {}),
    (CampaignCompletedSensor, {}),
    (UploadContactsOperator, {"contacts": ROWS}),
    (CallHistoryToObjectStorageOperator, {"path": "calls.csv"}),
]


@pytest.mark.parametrize(("task", "arguments"), TASKS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"campaign_id": 42}, r'^campaign_id must be a text; got 42 \(int\)\. Write it in quotes: "42"\.$'),
        ({"campaign_id": None}, r"^campaign_id must be a text, and nothing was given: it is None\.$"),
        ({"campaign_id": ["spring"]}, r"^campaign_id must be a text; got \['spring'\] \(list\)\.$"),
        ({"campaign_id": " "}, r"^campaign_id must not be empty; got ' '\.$"),
        ({"voicegenie_conn_id": ""}, r"^voicegenie_conn_id must not be empty"),
        ({"voicegenie_conn_id": None}, r"^voicegenie_conn_id must be a text"),
    ],
)
def test_what_no_run_can_use_is_refused_when_the_dag_is_parsed(task, arguments, wrong, message):
    with DAG("wrong", schedule=None), pytest.raises(ValueError, match=message):
        task(task_id="task", **{"campaign_id": "spring", **arguments, **wrong})


@pytest.mark.parametrize("given", ["{{ params.campaign_id }}", "{% if ds %}a{% endif %}", "spring"])
def test_what_a_run_may_use_is_not(given):
    with DAG("right", schedule=None):
        StartCampaignOperator(task_id="start", campaign_id=given, voicegenie_conn_id=given)


def campaign_of_the_day(context, jinja_env):
    return context["params"]["campaign"]


def test_a_function_may_give_the_id_in_the_run(sandbox):
    campaign = sandbox.add_campaign()
    with DAG("right", schedule=None):
        task = StartCampaignOperator(task_id="start", campaign_id=campaign_of_the_day)
    run = {**context(), "params": {"campaign": campaign.id}}
    task.render_template_fields(run)
    task.execute(run)
    assert sandbox.start_count(campaign.id) == 1


def test_a_mapped_task_may_have_no_campaign(sandbox):
    # So that authors decide by a condition, as for a template that gives none.
    with DAG("mapped", schedule=None):
        mapped = StartCampaignOperator.partial(task_id="start", outcomes={"INVALID_CAMPAIGN_ID": "skip"}).expand(
            campaign_id=["spring", None]
        )
    task = mapped.unmap({"campaign_id": None})
    with pytest.raises(AirflowSkipException, match="INVALID_CAMPAIGN_ID"):
        task.execute(context())


def test_an_unknown_argument_is_named_before_one_that_is_missing():
    with pytest.raises((TypeError, AirflowException), match="campain_id"):
        UploadContactsOperator(task_id="upload", contacts=ROWS, campain_id="spring")


def test_an_address_is_no_id(sandbox):
    task = StartCampaignOperator(task_id="start", campaign_id="https://app.example.com/campaigns/65f0")
    with pytest.raises(AirflowFailException) as refused:
        task.execute(context())
    message = str(refused.value)
    assert "campaign_id is an address. Pass the id as the VoiceGenie dashboard shows it" in message
    assert not sandbox.sandbox.requests


def test_a_name_as_id_is_told_from_an_id(sandbox):
    task = StartCampaignOperator(task_id="start", campaign_id="Spring campaign")
    with pytest.raises(AirflowFailException, match="id, which is neither its name nor its address") as refused:
        task.execute(context())
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_a_part_is_no_percentage():
    with pytest.raises(ValueError, match=r'got 0\.02\. Did you mean "2%"\?$'):
        UploadContactsOperator(task_id="upload", campaign_id="spring", contacts=ROWS, max_rejected=0.02)


def test_an_alert_says_why_rows_were_rejected(sandbox):
    campaign = sandbox.add_campaign(total_count=0).id
    rows = [{"phone_number": text} for text in ("", "call me", "+4915112345678", *["1"] * 6)]
    task = UploadContactsOperator(task_id="upload", campaign_id=campaign, contacts=rows)
    with pytest.raises(AirflowFailException) as refused:
        task.execute(context())
    message = str(refused.value)
    assert Condition.CONTACTS_REJECTED in message
    assert "8 of 9 rows are rejected" in message
    assert message.count("; row") == 4  # five are named
    assert ": row 1 has no phone number; row 2 " in message
    assert "call me" not in message


def test_a_test_with_the_sandbox_sends_nothing_to_another_machine(sandbox, monkeypatch):
    # Nobody has this address: without the fixture's refusal, the connection would fail, and be tried again.
    monkeypatch.setenv(
        "AIRFLOW_CONN_SPAIN", '{"conn_type": "voicegenie", "host": "https://192.0.2.1", "password": "a-real-key"}'
    )
    task = StartCampaignOperator(task_id="start", campaign_id="long", voicegenie_conn_id="spain")
    with pytest.raises(AirflowFailException, match=r"nothing is sent to another machine.*INVALID_CONNECTION"):
        task.execute(context())
    with pytest.raises(InvalidConnectionError, match="nothing is sent to another machine"):
        VoiceGenieHook("spain").get_conn()
    monkeypatch.setenv("AIRFLOW_CONN_SPAIN", sandbox.connection(proxies={"http": "http://192.0.2.1:3128"}))
    with pytest.raises(InvalidConnectionError, match="nothing is sent to another machine"):
        VoiceGenieHook("spain").get_conn()
    monkeypatch.setenv("AIRFLOW_CONN_SPAIN", sandbox.connection())
    StartCampaignOperator(task_id="start", campaign_id="long", voicegenie_conn_id="spain").execute(context())
    assert sandbox.start_count("long") == 1


@pytest.mark.parametrize("value", ["{", '{"conn_type": "voicegenie",}'])
def test_a_variable_that_airflow_cannot_read_is_named(sandbox, monkeypatch, value):
    monkeypatch.setenv("AIRFLOW_CONN_SPAIN", value)
    task = StartCampaignOperator(task_id="start", campaign_id="long", voicegenie_conn_id="spain")
    with pytest.raises(AirflowException, match="Connection 'spain' cannot be read: the variable AIRFLOW_CONN_SPAIN"):
        task.execute(context())


@pytest.mark.parametrize(
    "address", ["voicegenie://:sk-secret@app.example.com", '{"conn_type": "voicegenie", "password": "sk-secret"}']
)
def test_a_whole_connection_in_place_of_its_id_is_not_shown(sandbox, address):
    with (
        DAG("wrong", schedule=None),
        pytest.raises(ValueError, match=r"must be an id; it is .*, or a whole connection") as refused,
    ):
        StartCampaignOperator(task_id="start", campaign_id="spring", voicegenie_conn_id=address)
    assert "sk-secret" not in str(refused.value)
    # As a template may give it.
    task = StartCampaignOperator(task_id="start", campaign_id="spring", voicegenie_conn_id=address)
    with pytest.raises(AirflowFailException, match="voicegenie_conn_id is a whole connection") as failed:
        task.execute(context())
    assert "sk-secret" not in str(failed.value)


@pytest.mark.parametrize("name", ["contacts", "exclude"])
def test_phone_numbers_are_no_rows(sandbox, name, caplog):
    number = "+4915112345678"

    def upload():
        task = UploadContactsOperator(task_id="t", campaign_id="long", **{"contacts": ROWS, name: [number]})
        task.contacts = task.contacts  # as Airflow sets what it rendered
        task.execute(context())

    with pytest.raises((ValueError, AirflowFailException), match=r'such as \[?{"phone_number": ') as refused:
        upload()
    assert number not in str(refused.value)
    assert "_Hidden" not in str(refused.value) + caplog.text
