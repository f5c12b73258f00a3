"""
### Use it to start a campaign by a schedule, and to hear of it if something goes wrong.

Every working day at nine it starts a campaign, if people may be called then. A run that comes more than an hour late,
because Airflow was down or somebody has cleared an old run, phones nobody. If a task fails for good, `alert` gets the
reason: what was seen, what to do, and the condition by which to look it up.

It is paused until you switch it on, as all DAGs with a schedule should be.
"""

import logging
from datetime import timedelta

import pendulum
from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor

log = logging.getLogger(__name__)

OFFICE = CallingHours("09:00", "18:00", "Europe/Berlin", ["mon", "tue", "wed", "thu", "fri"])


def alert(context) -> None:
    """Say which task failed, and why. Yours may send the same text to a chat, or wake somebody up."""
    task = context["ti"]
    log.error("ALERT: task %s of DAG %s has failed. %s", task.task_id, task.dag_id, context["exception"])


with DAG(
    dag_id="voicegenie_scheduled",
    schedule="0 9 * * mon-fri",
    start_date=pendulum.datetime(2026, 1, 1, tz="Europe/Berlin"),
    catchup=False,  # no runs for the days before it is switched on
    max_active_runs=1,
    is_paused_upon_creation=True,
    params={
        "campaign_id": Param(
            "ready",
            type="string",
            minLength=1,
            description="Id of the campaign. Its people are phoned within the hours.",
        )
    },
    default_args={"retries": 3, "retry_delay": timedelta(minutes=2), "on_failure_callback": alert},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    ready = CampaignReadySensor(
        task_id="ready",
        campaign_id="{{ params.campaign_id }}",
        deferrable=True,
        timeout=timedelta(minutes=45).total_seconds(),
    )
    start = StartCampaignOperator(
        task_id="start",
        campaign_id="{{ params.campaign_id }}",
        max_lateness=timedelta(hours=1),
        max_contacts=500,
        calling_hours=OFFICE,
        wait_for_completion=True,  # so that it pauses the campaign if the hours close meanwhile
        deferrable=True,
    )
    ready >> start
