"""
### Use it when something else must happen if nobody is phoned.

A skipped start also skips the tasks after it. A task with the trigger rule `all_skipped` runs instead of them, and
one with `none_failed` runs in both cases.

In the sandbox, trigger it with `{"campaign_id": "always-running"}` to see the other branch.
"""

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    dag_id="voicegenie_branch_on_skip",
    schedule=None,
    params={
        "campaign_id": Param(
            "ready", type="string", minLength=1, description="Id of the campaign. Its people are phoned at once."
        )
    },
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    start = StartCampaignOperator(
        task_id="start", campaign_id="{{ params.campaign_id }}", outcomes={"CAMPAIGN_COMPLETED": "skip"}
    )

    @task
    def announce(result: dict) -> str:
        """Tell the call centre; runs if the campaign was started."""
        return f"Campaign {result['campaign_id']} was started at {result['started_at']}."

    @task(trigger_rule="all_skipped")
    def write_letters(params=None) -> str:
        """Reach the people in another way; runs if the start was skipped."""
        return f"Letters instead of campaign {params['campaign_id']}."

    @task(trigger_rule="none_failed")
    def note() -> str:
        """Run in both cases."""
        return "Noted."

    letters = write_letters()
    start >> letters
    [announce(start.output), letters] >> note()
