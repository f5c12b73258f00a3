"""
### Use it for the whole way, every morning: from customers in one table to their calls in another.

A query chooses the customers. A file takes them to the upload, which makes the campaign of the day. A plan says how
many people would be phoned. The campaign is started within the calling hours, paused when they close, and followed to
its end without taking a worker slot. Its calls go into a second file, and from there into a table; a report counts
them.

A second run for one day finds the campaign of the first, which it has not made, and phones nobody. On a day without
customers, all is skipped.

Tasks hand on paths and numbers. So names and phone numbers are in the tables and in the files, and never in Airflow's
database or logs.

The tables are a SQLite file below Airflow's home, with made-up customers; put your own warehouse in its place, and the
script of your campaigns into the parameter.
"""

import csv
import json
import os
import sqlite3
from contextlib import closing
from datetime import timedelta
from itertools import product
from pathlib import Path

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, Param, task

from airflow_provider_voicegenie.operators.campaign import CallingHours, StartCampaignOperator
from airflow_provider_voicegenie.operators.contacts import UploadContactsOperator
from airflow_provider_voicegenie.sensors.campaign import CampaignReadySensor, ContactsRegistered
from airflow_provider_voicegenie.transfers.history import CallHistoryToObjectStorageOperator

HOME = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "voicegenie_pipeline"
# The day on which the run is due. `ds` may be another day, and a manual run may have none.
DAY = "{{ (data_interval_end if data_interval_end is defined else dag_run.run_after) | ds }}"
# Yours would be fewer, such as CallingHours("09:00", "18:00", "Europe/Berlin", ["mon", "tue", "wed", "thu", "fri"]).
HOURS = CallingHours("00:00", "23:59:59.999999", "Europe/Berlin")
FOLDER = "{{ params.folder }}/{{ run_id }}"


def warehouse() -> sqlite3.Connection:
    """Return a connection to the tables. Yours may be `PostgresHook("my_warehouse").get_conn()`."""
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = sqlite3.connect(HOME / "warehouse.db")
    names = product(("Ada", "Ben", "Cleo", "Dan", "Eve"), ("Archer", "Baker", "Carter", "Dyer", "Evans", "Fox"))
    customers = [
        (number, " ".join(name), f"+1 202 555 01{number:02}", "renewal" if number % 3 else "check-up")
        for number, name in enumerate(names)
    ]
    with database:
        database.execute("CREATE TABLE IF NOT EXISTS customers (id PRIMARY KEY, full_name, mobile, segment)")
        database.execute("CREATE TABLE IF NOT EXISTS calls (id PRIMARY KEY, campaign_id, status, duration, call_time)")
        database.executemany("INSERT OR IGNORE INTO customers VALUES (?, ?, ?, ?)", customers)
    return database


with DAG(
    dag_id="voicegenie_pipeline",
    # Yours would be "0 8 * * *", with a start_date and catchup=False; this example runs whenever you try it.
    schedule=None,
    params={
        "script_id": Param("script_1", type="string", minLength=1, description="Id of the script of the calls"),
        "segment": Param("renewal", type="string", minLength=1, description="Customers to call"),
        "folder": Param(str(HOME), type="string", minLength=1, description="Where the files go"),
    },
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["example", "voicegenie"],
):

    @task
    def choose_customers(path: str, params=None) -> str:
        """Write the customers of a segment to a file, and hand on its path."""
        query = "SELECT id, full_name, mobile FROM customers WHERE segment = ?"
        with closing(warehouse()) as database:
            customers = database.execute(query, [params["segment"]])
            ObjectStoragePath(path).parent.mkdir(parents=True, exist_ok=True)
            with ObjectStoragePath(path).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(column for column, *_ in customers.description)
                csv.writer(file).writerows(customers)
        return path

    @task
    def load_calls(path: str, campaign_id: str) -> int:
        """Load the calls into a table. A later try replaces them."""
        insert = "INSERT OR REPLACE INTO calls VALUES (:call_id, :campaign_id, :status, :duration, :call_time)"
        with closing(warehouse()) as database, database, ObjectStoragePath(path).open("r", encoding="utf-8") as file:
            lines = iter(file.readline, "")
            calls = ({**json.loads(line), "campaign_id": campaign_id} for line in lines)
            return database.executemany(insert, calls).rowcount

    @task
    def report(campaign_id: str) -> str:
        """Count the calls of the campaign by how they ended."""
        query = "SELECT status, count(*), avg(duration) FROM calls WHERE campaign_id = ? GROUP BY 1 ORDER BY 2 DESC, 1"
        with closing(warehouse()) as database:
            rows = database.execute(query, [campaign_id]).fetchall()
        lines = [f"{status:<12}{calls:>8}{seconds or 0:>12.0f}" for status, calls, seconds in rows]
        return "\n".join([f"{'status':<12}{'calls':>8}{'avg seconds':>12}", *lines])

    upload = UploadContactsOperator(
        task_id="upload",
        campaign_name=f"{{{{ params.segment }}}} {DAY}",
        script_id="{{ params.script_id }}",
        contacts=choose_customers(path=f"{FOLDER}/contacts.csv"),
        columns={"mobile": "phone_number", "full_name": "name"},
        max_rejected="2%",
    )
    campaign_id = upload.output["campaign_id"]
    ready = CampaignReadySensor(
        task_id="ready", campaign_id=campaign_id, prerequisites=[ContactsRegistered()], deferrable=True
    )
    guards = {"calling_hours": HOURS, "outcomes": {"OUTSIDE_CALLING_HOURS": "wait"}, "max_contacts": 1000}
    plan = StartCampaignOperator(task_id="plan", campaign_id=campaign_id, check_only=True, **guards)
    start = StartCampaignOperator(
        task_id="start",
        campaign_id=campaign_id,
        max_lateness=timedelta(hours=6),
        wait_for_completion=True,
        deferrable=True,
        poll_interval=20,
        **guards,
    )
    export = CallHistoryToObjectStorageOperator(
        task_id="export",
        campaign_id=campaign_id,
        path=f"{FOLDER}/calls.jsonl",
        # Nothing here says who was called. To know it, add contact_key, see docs/pipeline.md.
        columns=["call_id", "status", "duration", "call_time"],
    )
    ready >> plan >> start >> export
    load_calls(path=export.output["path"], campaign_id=campaign_id) >> report(campaign_id=campaign_id)
