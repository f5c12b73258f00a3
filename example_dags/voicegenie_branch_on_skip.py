"""
### Use it when something else is to happen where nobody is phoned.

A start that is skipped skips what comes after it. A task with the trigger rule `all_skipped` runs in its place, and one
with `none_failed` runs either way.

Trigger it with `{"campaign_id": "running"}` to see the other branch.
"""

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    dag_id="voicegenie_branch_on_skip",
    schedule=None,
    params={"campaign_id": Param("ready", type="string", minLength=1, description="Id of the campaign")},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    start = StartCampaignOperator(
        task_id="start", campaign_id="{{ params.campaign_id }}", outcomes={"CAMPAIGN_COMPLETED": "skip"}
    )

    @task
    def announce(result: dict) -> str:
        """Tell the call centre; it runs where the campaign was started."""
        return f"Campaign {result['campaign_id']} was started at {result['started_at']}."

    @task(trigger_rule="all_skipped")
    def write_letters(params=None) -> str:
        """Reach the people in another way; it runs where the start was skipped."""
        return f"Letters instead of campaign {params['campaign_id']}."

    @task(trigger_rule="none_failed")
    def note() -> str:
        """Run either way."""
        return "Noted."

    letters = write_letters()
    start >> letters
    [announce(start.output), letters] >> note()
