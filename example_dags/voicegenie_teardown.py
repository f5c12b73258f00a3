"""
### Use it when a campaign must stop calling at the end of its DAG run, whatever happens.

The start is the setup, and the pause is its teardown. The pause runs if the start succeeded, even if the work in
between failed, was skipped, or was ended by someone. If the campaign has ended by then, there is nothing to pause,
and the pause succeeds. The run fails if the work fails, and if the pause fails: then the campaign goes on.

The pause takes the id from the start: each field that a task returns is an output of its own.

Trigger it with `{"campaign_id": "...", "agents": 1}`.
"""

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_voicegenie.operators.campaign import PauseCampaignOperator, StartCampaignOperator

with DAG(
    dag_id="voicegenie_teardown",
    schedule=None,
    params={
        "campaign_id": Param(
            "ready", type="string", minLength=1, description="Id of the campaign. Its people are phoned at once."
        ),
        "agents": Param(0, type="integer", minimum=0, description="Agents on duty; without any, the work fails"),
    },
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    start = StartCampaignOperator(task_id="start", campaign_id="{{ params.campaign_id }}", retries=2)
    pause = PauseCampaignOperator(
        task_id="pause",
        campaign_id=start.output["campaign_id"],
        outcomes={"CAMPAIGN_COMPLETED": "succeed"},
        retries=5,
    ).as_teardown(setups=start, on_failure_fail_dagrun=True)

    @task
    def staff_the_hotline(params=None) -> str:
        """Prepare for the calls; if this fails, nobody must be called."""
        if not params["agents"]:
            raise RuntimeError("Nobody can take the calls.")
        return "Ready."

    @task
    def sum_up(result: str) -> str:
        """End the run beside the pause; without this, a successful pause would hide that the work failed."""
        return result

    work = staff_the_hotline()
    start >> work >> pause
    sum_up(work)
