"""
Start several campaigns, one mapped task each.

Trigger it with ``{"campaign_ids": ["...", "..."]}``. One that cannot be started does not hold up the others.
"""

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    dag_id="voicegenie_mapped_start",
    schedule=None,
    params={"campaign_ids": Param(["ready", "paused"], type="array", items={"type": "string"}, minItems=1)},
    tags=["example", "voicegenie"],
):

    @task
    def campaign_ids(params=None):
        """Return the ids from the run's parameters; a query to your warehouse could stand here."""
        return params["campaign_ids"]

    StartCampaignOperator.partial(
        task_id="start", max_active_tis_per_dagrun=4, outcomes={"CAMPAIGN_COMPLETED": "skip"}
    ).expand(campaign_id=campaign_ids())
