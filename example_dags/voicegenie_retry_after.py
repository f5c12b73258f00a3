"""
### Use it when the service is busy and says for how long. Needs Airflow 3.3.

A start that is refused with a 429 waits by itself, for two hours at most. This is for what is left, such as a 503.
After a failed try, Airflow waits for `retry_delay`. If the service sent `Retry-After`, this policy waits for that long
instead. `retries` still limits the number of tries. The policy sees no condition whose outcome is `fail`: Airflow never
passes an `AirflowFailException` to it.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param
from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator


class AsTheServiceAsks(RetryPolicy):
    """Wait for as long as the service asked, an hour at most."""

    def evaluate(self, exception, try_number, max_tries, context=None):
        """Read the seconds that the provider's exception carries."""
        seconds = getattr(exception, "retry_after", None)
        if seconds is None:
            return RetryDecision.default()
        return RetryDecision.retry(timedelta(seconds=min(seconds, 3600)), reason="the service asked for it")


with DAG(
    dag_id="voicegenie_retry_after",
    schedule=None,
    params={
        "campaign_id": Param(
            "ready", type="string", minLength=1, description="Id of the campaign. Its people are phoned at once."
        )
    },
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    StartCampaignOperator(
        task_id="start",
        campaign_id="{{ params.campaign_id }}",
        retries=5,
        retry_delay=timedelta(minutes=10),
        retry_policy=AsTheServiceAsks(),
    )
