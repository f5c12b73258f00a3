"""
### Use it when you have several VoiceGenie accounts, each with its own connection.

One mapped task starts each campaign over the connection of its account. A wrong key of one account does not hold up the
others. Each connection has its own `requests_per_minute`.

Trigger it with `{"starts": [{"campaign_id": "...", "voicegenie_conn_id": "voicegenie_spain"}, ...]}`.
"""

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator

with DAG(
    dag_id="voicegenie_several_accounts",
    schedule=None,
    params={
        "starts": Param(
            [
                {"campaign_id": "ready", "voicegenie_conn_id": "voicegenie_default"},
                {"campaign_id": "paused", "voicegenie_conn_id": "voicegenie_default"},
            ],
            type="array",
            items={"type": "object", "required": ["campaign_id", "voicegenie_conn_id"]},
            minItems=1,
        )
    },
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):

    @task
    def starts(params=None):
        """Return a campaign and a connection for each start; a query to your warehouse could stand here."""
        return params["starts"]

    StartCampaignOperator.partial(task_id="start", retries=3).expand_kwargs(starts())
