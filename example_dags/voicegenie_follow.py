"""
Follow a campaign to its end, and use what came of it.

Trigger it with ``{"campaign_id": "..."}``. The wait takes no worker slot. Where less than half of the calls ended well,
the task is skipped, and with it the report; after six hours it fails, and the campaign goes on.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    dag_id="voicegenie_follow",
    schedule=None,
    params={"campaign_id": Param("ready", type="string", minLength=1, description="Id of the campaign")},
    tags=["example", "voicegenie"],
):
    call = StartCampaignOperator(
        task_id="call",
        campaign_id="{{ params.campaign_id }}",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=timedelta(seconds=30),
        completion_timeout=timedelta(hours=6),
        min_success_rate=50,
        outcomes={"SUCCESS_RATE_TOO_LOW": "skip"},
        retries=2,
    )

    @task
    def report(result: dict) -> str:
        """Put the outcome into words."""
        numbers = result["statistics"]
        return f"{numbers['calls_completed']} of {numbers['total_contacts']} calls ended well."

    report(call.output)
