"""
### Use it to phone some people first, look at how it went, and then phone the rest. Needs Airflow 3.1.

The first start pauses the campaign after some finished calls. A person looks at the results, and approves. The second
start lets the same campaign go on. If fewer than one call in five is successful, it is paused again, and the run fails.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param
from airflow.providers.standard.operators.hitl import ApprovalOperator

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    dag_id="voicegenie_pilot",
    schedule=None,
    dagrun_timeout=timedelta(days=1),
    params={
        "campaign_id": Param(
            "ready",
            type="string",
            minLength=1,
            description="Id of the campaign. Five of its people are phoned at once.",
        ),
    },
    default_args={"wait_for_completion": True, "deferrable": True, "poll_interval": 10},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    pilot = StartCampaignOperator(task_id="pilot", campaign_id="{{ params.campaign_id }}", stop_after_calls=5)
    approval = ApprovalOperator(
        task_id="approval",
        subject="Phone the rest of campaign {{ params.campaign_id }}?",
        body="""{% set calls = ti.xcom_pull(task_ids='pilot')['statistics'] or {} -%}
            Of {{ calls.get('total_contacts', 'all') }} people, some were phoned. Calls by outcome:
            {{ calls.get('call_status_breakdown', 'not known') }}""",
    )
    rest = StartCampaignOperator(
        task_id="rest",
        campaign_id="{{ params.campaign_id }}",
        min_success_rate=20,
        judge_success_rate_after=10,
    )
    pilot >> approval >> rest
