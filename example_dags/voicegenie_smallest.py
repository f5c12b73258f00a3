"""
### Use it to begin with: wait until a campaign is ready, then start it.

It has no schedule, because each start phones people. Trigger it with `{"campaign_id": "..."}`. In the sandbox,
`ready` can be started, `always-running` is skipped, and the sensor waits for `draft`.
"""

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor

with DAG(
    dag_id="voicegenie_smallest",
    schedule=None,
    params={
        "campaign_id": Param(
            "ready", type="string", minLength=1, description="Id of the campaign. Its people are phoned at once."
        )
    },
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    ready = CampaignReadySensor(
        task_id="ready", campaign_id="{{ params.campaign_id }}", mode="reschedule", poke_interval=60, timeout=3600
    )
    start = StartCampaignOperator(task_id="start", campaign_id="{{ params.campaign_id }}")
    ready >> start
