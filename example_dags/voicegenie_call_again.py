"""
### Use it to call those again who were busy, or did not answer, the day before.

The calls of each day are exported to a file of the day. From yesterday's, those are chosen whom nobody reached, but
nobody who was called three times in a week. They go into a campaign of today. The service redials by itself, too; but
nobody can say afterwards what it did, so here each call is one of a campaign that a task started.

The files have phone numbers, and nothing else of a person. They are below Airflow's home. To try it without any, let
made-up calls stand in the place of yesterday's.
"""

import json
import os
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, Param, task

from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor, ContactsRegistered
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator

HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "voicegenie_call_again"
# The day on which the run is due. `ds` may be another day, and a manual run may have none.
DAY = "{{ (data_interval_end if data_interval_end is defined else dag_run.run_after) | ds }}"
MOST_CALLS_IN_A_WEEK = 3


def calls_of(folder: str, day: date) -> list[dict]:
    """Return the calls that were exported on a day."""
    path = ObjectStoragePath(f"{folder}/calls-{day}.jsonl")
    if not path.exists():
        return []
    with path.open("r", encoding="utf-8") as file:
        return [json.loads(line) for line in iter(file.readline, "")]


with DAG(
    dag_id="voicegenie_call_again",
    schedule=None,
    params={
        "script_id": Param("script_1", type="string", minLength=1, description="Id of the script of the calls"),
        "made_up_calls": Param(False, type="boolean", description="For the sandbox: make yesterday's calls up"),
        "folder": Param(str(HOME), type="string", minLength=1, description="Where the files go"),
    },
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):

    @task
    def choose(day: str, params=None) -> str:
        """Write the numbers to call again to a file, and hand on its path."""
        folder, today = params["folder"], date.fromisoformat(day)
        ObjectStoragePath(folder).mkdir(parents=True, exist_ok=True)
        week = [calls_of(folder, today - timedelta(days=days)) for days in range(1, 8)]
        if params["made_up_calls"]:
            statuses = {"+1 202 555 0151": "busy", "+1 202 555 0152": "no_answer", "+1 202 555 0153": "answered"}
            week = [[{"phone_number": number, "status": status} for number, status in statuses.items()]]
        times = Counter(call["phone_number"] for calls in week for call in calls)
        # The last call of each number counts; the service promises no order.
        calls = sorted(week[0], key=lambda call: call.get("call_time") or "")
        last = {call["phone_number"]: call["status"] for call in calls}
        missed = [number for number, status in last.items() if status in ("busy", "no_answer")]
        path = f"{folder}/contacts-{day}.jsonl"
        with ObjectStoragePath(path).open("w", encoding="utf-8") as file:
            for number in missed:
                if times[number] < MOST_CALLS_IN_A_WEEK:
                    file.write(json.dumps({"phone_number": number}) + "\n")
        return path

    upload = UploadContactsOperator(
        task_id="upload",
        campaign_name=f"call again {DAY}",
        script_id="{{ params.script_id }}",
        contacts=choose(day=DAY),
    )
    campaign_id = upload.output["campaign_id"]
    ready = CampaignReadySensor(
        task_id="ready", campaign_id=campaign_id, prerequisites=[ContactsRegistered()], deferrable=True
    )
    start = StartCampaignOperator(
        task_id="start",
        campaign_id=campaign_id,
        # Yours would be fewer, such as "09:00" to "18:00".
        calling_hours=CallingHours("00:00", "23:59:59.999999", "Europe/Berlin"),
        max_contacts=1000,
        wait_for_completion=True,
        deferrable=True,
        poll_interval=20,
    )
    export = CallHistoryToObjectStorageOperator(
        task_id="export",
        campaign_id=campaign_id,
        path=f"{{{{ params.folder }}}}/calls-{DAY}.jsonl",
        columns=["phone_number", "status", "call_time"],
    )
    ready >> start >> export
