"""
### Use it when people may be phoned at certain hours only.

The sensor waits for the hours without taking a worker slot. The operator checks them again right before the start,
because a task may wait in the queue. The hours are local time in a time zone, with its changes to daylight saving
time.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor, HasContacts

# Yours would be fewer, such as CallingHours("09:00", "18:00", "Europe/Berlin", ["mon", "tue", "wed", "thu", "fri"]);
# this example runs whenever you try it.
HOURS = CallingHours("00:00", "23:59:59.999999", "Europe/Berlin")

with DAG(
    dag_id="voicegenie_calling_hours",
    schedule=None,
    params={
        "campaign_id": Param(
            "ready",
            type="string",
            minLength=1,
            description="Id of the campaign. Its people are phoned within the hours.",
        )
    },
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    ready = CampaignReadySensor(
        task_id="ready",
        campaign_id="{{ params.campaign_id }}",
        prerequisites=[HasContacts(minimum=10), HOURS],
        deferrable=True,
        poke_interval=60,
        timeout=timedelta(days=3).total_seconds(),
    )
    start = StartCampaignOperator(
        task_id="start",
        campaign_id="{{ params.campaign_id }}",
        calling_hours=HOURS,
        outcomes={"OUTSIDE_CALLING_HOURS": "skip"},
    )
    ready >> start
