"""
### Use it when a pipeline decides whom to call, and uses the result.

An upstream task finds the campaign, the start follows it to its end without taking a worker slot, and a downstream task
gets the final statistics. If less than half of the finished calls were successful, the task is skipped, and the report
with it. After six hours the task fails, and the campaign goes on.

Trigger it with `{"segment": "ready"}`. The sandbox has a campaign with that name.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    dag_id="voicegenie_taskflow",
    schedule=None,
    params={"segment": Param("ready", type="string", minLength=1, description="Customers to call")},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):

    @task
    def find_campaign(params=None) -> str:
        """Return the campaign of a segment; a query to your warehouse could stand here."""
        return params["segment"]

    @task
    def report(result: dict) -> str:
        """Describe the result."""
        numbers = result["statistics"]
        return f"{numbers['calls_completed']} of {numbers['total_contacts']} calls were successful."

    call = StartCampaignOperator(
        task_id="call",
        campaign_id=find_campaign(),
        wait_for_completion=True,
        deferrable=True,
        poll_interval=timedelta(seconds=30),
        completion_timeout=timedelta(hours=6),
        min_success_rate=50,
        outcomes={"SUCCESS_RATE_TOO_LOW": "skip"},
        retries=2,
    )
    report(call.output)
