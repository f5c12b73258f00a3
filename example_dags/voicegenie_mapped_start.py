"""
### Use it for several campaigns at once, within the rate limit of your plan.

One mapped task starts each campaign, and one that cannot be started does not hold up the others. A start that the
service refuses because too many requests came in waits and is tried again. The pool limits how many tasks of all DAGs
and runs start campaigns at the same time, so that few are refused. Create it once:
`airflow pools set voicegenie 4 "VoiceGenie requests"`. A pool counts deferred tasks only with `--include-deferred`.

Trigger it with `{"campaign_ids": ["...", "..."]}`.
"""

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    dag_id="voicegenie_mapped_start",
    schedule=None,
    params={"campaign_ids": Param(["ready", "paused"], type="array", items={"type": "string"}, minItems=1)},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):

    @task
    def campaign_ids(params=None):
        """Return the ids from the run's parameters; a query to your warehouse could stand here."""
        return params["campaign_ids"]

    StartCampaignOperator.partial(
        task_id="start", pool="voicegenie", retries=3, outcomes={"CAMPAIGN_COMPLETED": "skip"}
    ).expand(campaign_id=campaign_ids())
