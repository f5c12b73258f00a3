# SPDX-License-Identifier: Apache-2.0
"""Catch-up and backfill runs, made and run by a real scheduler."""

from __future__ import annotations

import pytest
from services import IS_AIRFLOW_2, wait_for

pytestmark = pytest.mark.airflow

DAGS = """
from datetime import datetime, timedelta, timezone
from airflow.providers.common.compat.sdk import DAG, Asset, task
from airflow_provider_voicegenie.operators.campaign import StartCampaignOperator


@task
def export():
    return "done"


history, news = Asset("s3://bucket/history"), Asset("s3://bucket/news")
begin, end = (datetime(2026, 1, day, tzinfo=timezone.utc) for day in (5, 7))
# On a busy machine, Airflow itself fails a try before it begins.
again = {"retries": 3, "retry_delay": timedelta(seconds=1)}
with DAG("late", schedule="@daily", start_date=begin, end_date=end, catchup=True, default_args=again):
    StartCampaignOperator(task_id="start", campaign_id="ready", max_lateness=timedelta(hours=1))
    export.override(outlets=[news])()
with DAG("history", schedule="@daily", start_date=begin, end_date=end, catchup=False, default_args=again):
    StartCampaignOperator(task_id="start", campaign_id="paused", outcomes={"RUN_TOO_LATE": "fail"}, max_lateness=1e9)
    export.override(outlets=[history])()
with DAG("after_backfill", schedule=[history], start_date=begin, default_args=again):
    StartCampaignOperator(task_id="start", campaign_id="paused")
with DAG("after_schedule", schedule=[news], start_date=begin, max_active_runs=1, default_args=again):
    StartCampaignOperator(task_id="start", campaign_id="news")
"""

#: Airflow's word for a run that asset events triggered.
BY_ASSETS = "dataset_triggered" if IS_AIRFLOW_2 else "asset_triggered"


def states(airflow, dag_id, run_type):
    return airflow.query(
        "SELECT task_instance.state FROM task_instance JOIN dag_run USING (dag_id, run_id) "
        "WHERE dag_id = ? AND run_type = ? AND task_id = 'start'",
        dag_id,
        run_type,
    )


def all_ended(airflow, dag_id, run_type, least):
    rows = [state for (state,) in states(airflow, dag_id, run_type)]
    return rows if len(rows) >= least and set(rows) <= {"skipped", "success", "failed"} else None


def backfill(airflow, dag_id, begin, end):
    if IS_AIRFLOW_2:
        made = airflow.run("dags", "backfill", "-s", begin, "-e", end, dag_id)
        assert made.returncode == 0, made.stdout + made.stderr
    else:
        dates = {"from_date": f"{begin}T00:00:00Z", "to_date": f"{end}T00:00:00Z"}
        airflow.services.request("POST", "backfills", dag_id=dag_id, **dates)


def test_catch_up_and_backfill_phone_nobody(shared):
    shared.sandbox.add_campaign(id="news", total_count=10**6)
    shared.add_dags("scheduled", DAGS)
    late = wait_for("catch-up runs", lambda: all_ended(shared, "late", "scheduled", 2))
    backfill(shared, "history", "2026-01-05", "2026-01-06")
    backfilled = wait_for("backfill runs", lambda: all_ended(shared, "history", "backfill", 2))
    by_assets = {
        name: wait_for(f"a run of {name}", lambda name=name: all_ended(shared, name, BY_ASSETS, 1))
        for name in ("after_backfill", "after_schedule")
    }
    assert set(late) == {"skipped"}
    assert set(backfilled) == {"skipped"}
    assert set(by_assets["after_backfill"]) == {"skipped"}
    assert by_assets["after_schedule"][0] == "success"
    assert shared.sandbox.request_count("start") == shared.sandbox.request_count("start", "news")
    assert shared.sandbox.start_count("news") == 1
    assert "RUN_TOO_LATE: the task is skipped" in shared.logs("late")
    assert "BACKFILL_RUN: the task is skipped" in shared.logs("history")
    assert "the asset events that triggered this run come from backfill runs only" in shared.logs("after_backfill")
