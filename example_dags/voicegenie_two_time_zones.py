"""
### Use it when the people on one list live in several time zones.

No time zone can be read from a phone number. So each row says in which one its person lives, and each time zone has a
campaign, an upload and a start of its own, whose calling hours are in local time. Each campaign is paused when they
close, so nobody is phoned at night because it is day elsewhere.

The people here are made up, and are in Airflow's database, as a task returns them. If yours must not be there, let the
task write one file for each time zone, and hand on the paths.
"""

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator

# Time zone -> task group and parameter with the campaign. The hours would be fewer, such as "09:00" to "18:00".
ZONES = {"Europe/Lisbon": "lisbon", "America/New_York": "new_york"}

with DAG(
    dag_id="voicegenie_two_time_zones",
    schedule=None,
    params={
        "lisbon": Param("no-contacts", type="string", minLength=1, description="Campaign for Europe/Lisbon"),
        "new_york": Param("paused", type="string", minLength=1, description="Campaign for America/New_York"),
    },
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):

    @task(show_return_value_in_logs=False)
    def customers():
        """Return a row for each person. A query to your warehouse could stand here."""
        people = [
            {"phone_number": "+351 21 000 0001", "name": "Ana", "time_zone": "Europe/Lisbon"},
            {"phone_number": "+1 202 555 0191", "name": "Ben", "time_zone": "America/New_York"},
            {"phone_number": "+1 202 555 0192", "name": "Cleo", "time_zone": "America/New_York"},
        ]
        if elsewhere := {person["time_zone"] for person in people} - set(ZONES):
            raise ValueError(f"There is no campaign for {', '.join(elsewhere)}")
        return people

    @task(show_return_value_in_logs=False)
    def living_in(zone, rows):
        """Return those who live in one time zone."""
        return [row for row in rows if row["time_zone"] == zone]

    everybody = customers()
    for zone, name in ZONES.items():
        campaign_id = f"{{{{ params.{name} }}}}"
        upload = UploadContactsOperator(
            task_id=f"upload_{name}",
            campaign_id=campaign_id,
            contacts=living_in.override(task_id=f"living_in_{name}")(zone, everybody),
        )
        start = StartCampaignOperator(
            task_id=f"start_{name}",
            campaign_id=campaign_id,
            calling_hours=CallingHours("00:00", "23:59:59.999999", zone),
            outcomes={"OUTSIDE_CALLING_HOURS": "wait"},
            wait_for_completion=True,
            deferrable=True,
            poll_interval=20,
        )
        upload >> start
