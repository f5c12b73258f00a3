# SPDX-License-Identifier: Apache-2.0
"""Arguments of tasks that wait: which are refused when the DAG is parsed, and what is stored of them."""

from __future__ import annotations

import json

import pytest
from airflow.providers.common.compat.sdk import (
    TaskDeferred,
)
from helpers.tasks import (
    Following,
    Starting,
    context,
)

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignCompletedSensor, CampaignReadySensor


@pytest.mark.parametrize("make", [Starting(), Following()])
def test_no_secret_is_stored(sandbox, make):
    run = context()
    with pytest.raises(TaskDeferred) as deferral:
        make(deferrable=True).execute(run)
    # The one place in which the sandbox's address is meant to be.
    assert run["ti"].xcom.pop("_link_CampaignLink").startswith(sandbox.url)
    assert run["ti"].xcom["voicegenie_task"]["campaign_id"] == make.campaign_id
    kept = json.dumps([deferral.value.trigger.serialize(), deferral.value.kwargs, run["ti"].xcom])
    assert sandbox.api_key not in kept
    assert sandbox.url not in kept


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"min_success_rate": 0.5}, "min_success_rate"),
        ({"poll_interval": 0}, "poll_interval"),
        ({"poll_interval": "60"}, "poll_interval"),
        ({"completion_timeout": -1}, "completion_timeout"),
        ({"stall_timeout": float("nan")}, "stall_timeout"),
        ({"min_success_rate": 101}, "min_success_rate"),
        ({"min_success_rate": True}, "min_success_rate"),
        ({"wait_for_completion": "yes"}, "wait_for_completion"),
        ({"deferrable": 1}, "deferrable"),
        ({"pause_on_kill": None}, "pause_on_kill"),
        ({"outcomes": {"COMPLETION_TIMEOUT": "wait"}}, "COMPLETION_TIMEOUT"),
        ({"outcomes": {"SUCCESS_RATE_TOO_LOW": "wait"}}, "SUCCESS_RATE_TOO_LOW"),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments, named):
    with pytest.raises(ValueError, match=named):
        StartCampaignOperator(**{"task_id": "t", "campaign_id": "c", "wait_for_completion": True, **arguments})
    if named in ("stall_timeout", "min_success_rate", "deferrable", "SUCCESS_RATE_TOO_LOW"):
        with pytest.raises(ValueError, match=named):
            CampaignCompletedSensor(**{"task_id": "t", "campaign_id": "c", **arguments})


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("cls", [StartCampaignOperator, CampaignCompletedSensor, CampaignReadySensor])
def test_airflows_default_decides_whether_to_defer(monkeypatch, cls, default):
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", str(default))
    assert cls(task_id="t", campaign_id="c").deferrable is default
    assert cls(task_id="t", campaign_id="c", deferrable=not default).deferrable is not default
