"""
### Use it when you want other outcomes than the default ones.

An unknown campaign skips the task, one that is already running counts as started, and a run that comes more than an
hour late phones nobody.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    dag_id="voicegenie_failure_rules",
    schedule=None,
    params={
        "campaign_id": Param(
            "ready", type="string", minLength=1, description="Id of the campaign. Its people are phoned at once."
        )
    },
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    StartCampaignOperator(
        task_id="start",
        campaign_id="{{ params.campaign_id }}",
        outcomes={
            "NOT_FOUND": "skip",
            "CAMPAIGN_ALREADY_RUNNING": "succeed",
        },
        max_lateness=timedelta(hours=1),
        retries=2,
        retry_delay=timedelta(minutes=30),
    )
