"""
### Use it for a campaign that takes longer than one day. Needs Airflow 3.3.

The task starts the campaign, pauses it each evening when its calling hours close, and starts it again each morning
when they open, until it is completed or three days are over. It takes no worker slot meanwhile. Each start is sent
once; what somebody stops or pauses in the VoiceGenie dashboard stays as it is.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator

# Yours would be fewer, such as CallingHours("09:00", "18:00", "Europe/Berlin", ["mon", "tue", "wed", "thu", "fri"]).
HOURS = CallingHours("00:00", "23:59:59.999999", "Europe/Berlin")

with DAG(
    dag_id="voicegenie_two_days",
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
    StartCampaignOperator(
        task_id="start",
        campaign_id="{{ params.campaign_id }}",
        calling_hours=HOURS,
        at_closing="pause_and_resume",
        outcomes={"OUTSIDE_CALLING_HOURS": "wait"},
        wait_for_completion=True,
        completion_timeout=timedelta(days=3),
        deferrable=True,
        poll_interval=20,
        retries=3,
    )
