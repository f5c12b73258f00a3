# SPDX-License-Identifier: Apache-2.0
"""Whether a task may start a campaign at all. The first condition found counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.rules.calling_hours import describe, is_open
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding
from airflow_provider_voicegenie.rules.parameters import NOT_GIVEN, read_rendered_number
from airflow_provider_voicegenie.rules.prerequisites import HasContacts, HasScript, IsStartable, check_readiness

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.models import Campaign
    from airflow_provider_voicegenie.rules.calling_hours import CallingHours


#: Airflow 3's word for a run that asset events triggered, and Airflow 2's.
_TRIGGERED_BY_ASSETS = ("asset_triggered", "dataset_triggered")


def _run_type(dag_run: Any) -> str:
    return str(getattr(dag_run.run_type, "value", dag_run.run_type))


def _comes_from_backfill(event: Any) -> bool:
    try:
        source = getattr(event, "source_dag_run", None)
    except Exception:  # noqa: BLE001  the run may be gone, which each Airflow says in another way
        source = None
    if source is not None:
        return _run_type(source) == "backfill"
    # All that Airflow 3.0 and 3.1 give of the run is its id.
    return str(getattr(event, "source_run_id", None) or "").startswith("backfill__")


def check_run(task: Any, context: Mapping[str, Any], now: datetime) -> Finding | None:
    """
    Check the DAG run, before anything is asked of the service.

    :param task: The operator, a ``StartCampaignOperator``.
    :param now: The time.
    """
    finding = None if task.start_in_backfill else check_backfill(context, "phone nobody", "start_in_backfill")
    if finding is not None or task.max_lateness is None:
        return finding
    dag_run, maximum = context["dag_run"], timedelta(seconds=task.max_lateness)
    # Airflow 3 says when a run was due; before, a run was due at the end of its data interval.
    due = getattr(dag_run, "run_after", None) or getattr(dag_run, "data_interval_end", None)
    if due is None or _run_type(dag_run) != "scheduled" or now - due <= maximum:
        return None
    message = f"this run was due at {due.isoformat()}, {now - due} ago, and max_lateness is {maximum}"
    return Finding(Condition.RUN_TOO_LATE, message)


def check_backfill(context: Mapping[str, Any], rule: str, parameter: str) -> Finding | None:
    """
    Find that a run is a backfill, or that all asset events that triggered it come from backfills.

    :param rule: What backfills do not do, in words.
    :param parameter: The parameter by which the author changes that.
    """
    run_type = _run_type(context["dag_run"])
    unless = f"backfills {rule} unless the task says {parameter}=True"
    if run_type == "backfill":
        return Finding(Condition.BACKFILL_RUN, f"this is a backfill run, and {unless}")
    if run_type not in _TRIGGERED_BY_ASSETS:
        return None
    # Airflow 2 asks its database for them now, which may fail in other runs.
    by_asset = context.get("triggering_asset_events") or context.get("triggering_dataset_events") or {}
    events = list(chain.from_iterable(by_asset.values()))
    if events and all(map(_comes_from_backfill, events)):
        message = f"the asset events that triggered this run come from backfill runs only, and {unless}"
        return Finding(Condition.BACKFILL_RUN, message)
    return None


def check_campaign(task: Any, campaign: Campaign) -> Finding | None:
    """
    Check the campaign as it was just read.

    :param task: The operator, a ``StartCampaignOperator``.
    :raises AirflowFailException: The rendered ``max_contacts`` is no number, which allows no start.
    """
    maximum = None
    if task.max_contacts is not NOT_GIVEN:
        try:
            maximum = read_rendered_number("max_contacts", task.max_contacts, minimum=0)
        except ValueError as error:
            raise AirflowFailException(
                f"Campaign {task.campaign_id!r:.80}: {error} If a template gave that: did the task that it reads "
                "return a number? Nothing was started."
            ) from None
    if campaign.status.is_running:
        return Finding(Condition.CAMPAIGN_ALREADY_RUNNING, "the campaign was already running, so it was not started")
    if campaign.status.has_ended:
        return Finding(
            Condition.CAMPAIGN_COMPLETED,
            f"the campaign is over ({campaign.status.value}), and a campaign that ended is not started again",
        )
    count = campaign.total_count
    if maximum is None or (count is not None and count <= maximum):
        return None
    contacts = "an unknown number of contacts" if count is None else f"{count:,} contacts"
    return Finding(
        Condition.TOO_MANY_CONTACTS,
        f"the campaign has {contacts}, and max_contacts is {maximum:,}, so it was not started",
    )


def check_configuration(campaign: Campaign, now: datetime) -> Finding | None:
    """
    Check what the service would refuse, for a start that is not sent.

    :param now: The time.
    """
    wanted = [IsStartable(), HasScript(), *([] if campaign.total_count is None else [HasContacts()])]
    missing = check_readiness(wanted, campaign, now).missing
    if not missing:
        return None
    return Finding(Condition.INVALID_CAMPAIGN_STATE, f"the service would not start it: {'; '.join(missing)}")


def check_calling_hours(calling_hours: Sequence[CallingHours], now: datetime) -> Finding | None:
    """Check the time, right before the start."""
    if is_open(calling_hours, now):
        return None
    return Finding(
        Condition.OUTSIDE_CALLING_HOURS,
        f"local time is {calling_hours[0].local_time(now)}, outside the calling hours {describe(calling_hours)}",
    )


def describe_start(campaign: Campaign, calling_hours: Sequence[CallingHours], now: datetime) -> str:
    """
    Say in a few words whom a start would phone.

    :param campaign: The campaign as it was just read, in which :func:`check_configuration` finds nothing.
    :param calling_hours: When people may be phoned; empty for any time.
    :param now: The time.
    """
    hours = "no calling hours set"
    if calling_hours:
        hours = f"{'within' if is_open(calling_hours, now) else 'outside'} the calling hours"
    return f"{describe_contacts(campaign)}, script set, {hours}"


def describe_contacts(campaign: Campaign) -> str:
    """
    Say how many people a start would phone.

    :param campaign: The campaign as it was read before the start.
    """
    count, done = campaign.total_count, (campaign.completed_count or 0) + (campaign.failed_count or 0)
    if count is None:
        return "an unknown number of contacts"
    contacts = f"{count:,} contact{'' if count == 1 else 's'}"
    return f"{contacts} ({done:,} call{'' if done == 1 else 's'} done before)" if done else contacts
