"""
### Use it when a person has to agree before anybody is phoned. Needs Airflow 3.1.

The task *plan* checks the campaign, and says how many people a start would phone, when, and until when. The run waits
until someone approves that in Airflow's UI, under *Required Actions*; a notifier says that it waits. The start phones
at most as many people as were approved: if contacts were added meanwhile, it fails, and nobody is phoned. A rejection
skips the start. If nobody decides within a day, the run fails, and nobody is phoned either. A backfill of chosen tasks
(Airflow 3.4) skips the approval, if it is not among them.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, BaseNotifier, Param
from airflow.providers.standard.operators.hitl import ApprovalOperator

from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator

# Yours would be fewer, such as CallingHours("09:00", "18:00", "Europe/Berlin", ["mon", "tue", "wed", "thu", "fri"]).
HOURS = CallingHours("00:00", "23:59:59.999999", "Europe/Berlin")


class NotifyApprovers(BaseNotifier):
    """Stands for yours, such as the SlackNotifier or the SmtpNotifier of Airflow's providers."""

    template_fields = ("message",)

    def __init__(self, message):
        super().__init__()
        self.message = message

    def notify(self, context):
        """Tell somebody."""
        self.log.info("%s", self.message)


with DAG(
    dag_id="voicegenie_approval",
    schedule=None,
    dagrun_timeout=timedelta(days=1),
    params={
        "campaign_id": Param(
            "ready",
            type="string",
            minLength=1,
            description="Id of the campaign. Its people are phoned once somebody approves.",
        )
    },
    default_args={"outcomes": {"OUTSIDE_CALLING_HOURS": "wait"}, "calling_hours": HOURS},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    plan = StartCampaignOperator(task_id="plan", campaign_id="{{ params.campaign_id }}", check_only=True)
    approval = ApprovalOperator(
        task_id="approval",
        subject="Start campaign {{ params.campaign_id }}?",
        body="""{% set plan = ti.xcom_pull(task_ids='plan') -%}
            This phones {{ plan['contacts'] or 'an unknown number of' }} people of {{ plan['name'] or 'the campaign' }}
            {{ 'from ' + plan['starts_at'] + ' on.' if plan['starts_at'] else 'as soon as you approve.' }}
            {{ 'Its calling hours close at ' + plan['closes_at'] + '. Approved later, it starts when they open again.'
            if plan['closes_at'] else '' }} Times are in UTC.""",
        notifiers=[NotifyApprovers("A campaign waits for approval: {{ dag.dag_id }}, {{ run_id }}")],
    )
    start = StartCampaignOperator(
        task_id="start",
        campaign_id="{{ params.campaign_id }}",
        max_contacts="{{ (ti.xcom_pull(task_ids='plan') or {}).get('contacts') }}",
        deferrable=True,
    )
    plan >> approval >> start
