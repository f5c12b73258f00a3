"""
Say what each difficulty does to the task, and when people may be phoned.

An unknown campaign skips, one that runs already counts as started, and outside the calling hours the task is retried.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator

with DAG(
    dag_id="voicegenie_failure_rules",
    schedule=None,
    params={"campaign_id": Param("ready", type="string", minLength=1, description="Id of the campaign")},
    tags=["example", "voicegenie"],
):
    StartCampaignOperator(
        task_id="start",
        campaign_id="{{ params.campaign_id }}",
        outcomes={
            "NOT_FOUND": "skip",
            "CAMPAIGN_ALREADY_RUNNING": "succeed",
            "OUTSIDE_CALLING_HOURS": "retry",
        },
        # Everyday use would name fewer hours; this example should run whenever it is tried.
        calling_hours=CallingHours("00:00", "23:59:59.999999", "Europe/Berlin"),
        max_lateness=timedelta(hours=1),
        retries=2,
        retry_delay=timedelta(minutes=30),
    )
