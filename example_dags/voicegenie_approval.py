"""
### Use it when a person has to agree before anybody is phoned. Needs Airflow 3.1.

The run waits until someone approves it in Airflow's UI, under *Required Actions*. The campaign is checked before, so
that nobody is asked about one that cannot be started, and again right before the start. A rejection skips the start.
If nobody decides within a day, the run fails, and nobody is phoned either.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param
from airflow.providers.standard.operators.hitl import ApprovalOperator

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor

with DAG(
    dag_id="voicegenie_approval",
    schedule=None,
    dagrun_timeout=timedelta(days=1),
    params={"campaign_id": Param("ready", type="string", minLength=1, description="Id of the campaign")},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    ready = CampaignReadySensor(task_id="ready", campaign_id="{{ params.campaign_id }}", timeout=600)
    approval = ApprovalOperator(
        task_id="approval",
        subject="Start campaign {{ params.campaign_id }}?",
        body="This phones {{ ti.xcom_pull(task_ids='ready')['total_count'] }} people at once.",
    )
    start = StartCampaignOperator(task_id="start", campaign_id="{{ params.campaign_id }}")
    ready >> approval >> start
