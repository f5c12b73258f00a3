# SPDX-License-Identifier: Apache-2.0
"""Reads from a task's context what decides whether its DAG run may start a campaign."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from airflow_provider_voicegenie.decisions.guards import RunFacts

#: Airflow 3's word for a run that asset events triggered, and Airflow 2's.
_TRIGGERED_BY_ASSETS = ("asset_triggered", "dataset_triggered")


def run_facts(context: Mapping[str, Any]) -> RunFacts:
    """
    Return what of a DAG run decides whether it may start a campaign.

    :param context: The task's context.
    """
    dag_run = context["dag_run"]
    run_type = _run_type(dag_run)
    # Airflow 3 says when a run was due; before, a run was due at the end of its data interval.
    due = getattr(dag_run, "run_after", None) or getattr(dag_run, "data_interval_end", None)
    return RunFacts(run_type, due, run_type in _TRIGGERED_BY_ASSETS and _is_triggered_by_backfills(context))


def _run_type(dag_run: Any) -> str:
    return str(getattr(dag_run.run_type, "value", dag_run.run_type))


def _is_triggered_by_backfills(context: Mapping[str, Any]) -> bool:
    """Tell whether all asset events that triggered the run come from backfill runs."""
    by_asset = context.get("triggering_asset_events") or context.get("triggering_dataset_events") or {}
    events = list(chain.from_iterable(by_asset.values()))
    return bool(events) and all(_comes_from_backfill(event) for event in events)


def _comes_from_backfill(event: Any) -> bool:
    try:
        source = getattr(event, "source_dag_run", None)
    except Exception:  # noqa: BLE001  the run may be gone, which each Airflow says in another way
        source = None
    if source is not None:
        return _run_type(source) == "backfill"
    # What Airflow 3.0 and 3.1 tell of the run is its id.
    return str(getattr(event, "source_run_id", None) or "").startswith("backfill__")
