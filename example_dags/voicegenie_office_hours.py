"""
### Use it when people are phoned in office hours, on no holiday, and never more of them than you expect.

Outside the office hours, the task waits in the triggerer until they open, and then checks everything anew. With
*check_only*, it says in its log whom it would phone, and phones nobody.
"""

from datetime import date, timedelta

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator


def is_holiday(day: date) -> bool:
    """Ask the calendar of the holidays package (pip install holidays); without it, these two days only."""
    try:
        from holidays import country_holidays
    except ImportError:
        return (day.month, day.day) in ((1, 1), (12, 25))
    return day in country_holidays("DE", subdiv="BE")


# Yours would leave out the night, such as 09:00 to 12:30 and 14:00 to 18:00 on ["mon", "tue", "wed", "thu", "fri"];
# this example runs whenever you try it.
OFFICE_HOURS = [
    CallingHours("00:00", "12:30", "Europe/Berlin", except_dates=is_holiday),
    CallingHours("12:30", "23:59:59.999999", "Europe/Berlin", except_dates=is_holiday),
]

with DAG(
    dag_id="voicegenie_office_hours",
    schedule=None,
    params={
        "campaign_id": Param("ready", type="string", minLength=1, description="Id of the campaign"),
        "check_only": Param(True, type="boolean", description="Only say whom the start would phone"),
    },
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):
    StartCampaignOperator(
        task_id="start",
        campaign_id="{{ params.campaign_id }}",
        check_only="{{ params.check_only }}",
        calling_hours=OFFICE_HOURS,
        outcomes={"OUTSIDE_CALLING_HOURS": "wait"},
        deferrable=True,
        max_contacts=5000,
        max_lateness=timedelta(hours=20),
    )
