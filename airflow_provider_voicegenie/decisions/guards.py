# SPDX-License-Identifier: Apache-2.0
"""Whether a task may start a campaign at all. The first condition found is the one that counts."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_voicegenie.decisions.outcomes import Condition

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.models import Campaign
    from airflow_provider_voicegenie.decisions.calling_hours import CallingHours


class Finding(NamedTuple):
    """
    A condition, and what was seen.

    :param condition: The condition.
    :param message: What was seen, in a sentence without its full stop.
    """

    condition: Condition
    message: str


class RunFacts(NamedTuple):
    """
    What of a DAG run decides whether it may start a campaign.

    :param run_type: ``scheduled``, ``manual``, ``backfill``, ...
    :param due: When the run was due; ``None`` if nobody can say.
    :param triggered_by_backfill: Whether asset events triggered the run, and all of them come from backfill runs.
    """

    run_type: str
    due: datetime | None
    triggered_by_backfill: bool = False


def check_run(run: RunFacts, now: datetime, *, start_in_backfill: bool, max_lateness: float | None) -> Finding | None:
    """
    Check the DAG run, before anything is asked of the service.

    :param run: The run.
    :param now: The time.
    :param start_in_backfill: Whether a backfill may start campaigns.
    :param max_lateness: Seconds that a scheduled run may be late; ``None`` for any.
    """
    if run.run_type == "backfill" and not start_in_backfill:
        return Finding(
            Condition.BACKFILL_RUN,
            "this is a backfill run, and backfills phone nobody unless the task says start_in_backfill=True",
        )
    if run.triggered_by_backfill and not start_in_backfill:
        return Finding(
            Condition.BACKFILL_RUN,
            "the asset events that triggered this run come from backfill runs only, and backfills phone nobody unless "
            "the task says start_in_backfill=True",
        )
    if max_lateness is not None and run.run_type == "scheduled" and run.due is not None:
        lateness = now - run.due
        if lateness > timedelta(seconds=max_lateness):
            return Finding(
                Condition.RUN_TOO_LATE,
                f"this run was due at {run.due.isoformat()}, {lateness} ago, "
                f"and max_lateness is {timedelta(seconds=max_lateness)}",
            )
    return None


def check_campaign(campaign: Campaign) -> Finding | None:
    """Check the campaign as it was just read."""
    if campaign.status.is_running:
        return Finding(Condition.CAMPAIGN_ALREADY_RUNNING, "the campaign was already running, so it was not started")
    if campaign.status.has_ended:
        return Finding(
            Condition.CAMPAIGN_COMPLETED,
            f"the campaign is over ({campaign.status.value}), and a campaign that ended is not started again",
        )
    return None


def check_calling_hours(calling_hours: CallingHours | None, now: datetime) -> Finding | None:
    """Check the time, right before the start."""
    if calling_hours is None or calling_hours.contains(now):
        return None
    return Finding(
        Condition.OUTSIDE_CALLING_HOURS,
        f"there it is {calling_hours.local_time(now)}, outside the calling hours {calling_hours}",
    )
