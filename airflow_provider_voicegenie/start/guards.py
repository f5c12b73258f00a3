# SPDX-License-Identifier: Apache-2.0
"""Whether a task may start a campaign at all. The first condition found is the one that counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

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


class RunFacts(NamedTuple):
    """
    The facts of a DAG run that decide whether it may start a campaign.

    :param run_type: ``scheduled``, ``manual``, ``backfill``, ...
    :param due: When the run was due; ``None`` if nobody can say.
    :param triggered_by_backfill: Whether asset events triggered the run, and all of them come from backfill runs.
    """

    run_type: str
    due: datetime | None
    triggered_by_backfill: bool = False

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> RunFacts:
        """Read them from a task's context."""
        dag_run = context["dag_run"]
        run_type = _run_type(dag_run)
        # Airflow 3 says when a run was due; before, a run was due at the end of its data interval.
        due = getattr(dag_run, "run_after", None) or getattr(dag_run, "data_interval_end", None)
        return cls(run_type, due, run_type in _TRIGGERED_BY_ASSETS and _is_triggered_by_backfills(context))


def _run_type(dag_run: Any) -> str:
    return str(getattr(dag_run.run_type, "value", dag_run.run_type))


def _is_triggered_by_backfills(context: Mapping[str, Any]) -> bool:
    """Say whether all asset events that triggered the run come from backfill runs."""
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
    # All that Airflow 3.0 and 3.1 give of the run is its id.
    return str(getattr(event, "source_run_id", None) or "").startswith("backfill__")


def check_run(run: RunFacts, now: datetime, *, start_in_backfill: bool, max_lateness: float | None) -> Finding | None:
    """
    Check the DAG run, before anything is asked of the service.

    :param now: The time.
    :param start_in_backfill: Whether a backfill may start campaigns.
    :param max_lateness: Seconds that a scheduled run may be late; ``None`` for any.
    """
    if not start_in_backfill and (finding := check_backfill(run, "phone nobody", "start_in_backfill")) is not None:
        return finding
    if max_lateness is not None and run.run_type == "scheduled" and run.due is not None:
        lateness = now - run.due
        if lateness > timedelta(seconds=max_lateness):
            return Finding(
                Condition.RUN_TOO_LATE,
                f"this run was due at {run.due.isoformat()}, {lateness} ago, "
                f"and max_lateness is {timedelta(seconds=max_lateness)}",
            )
    return None


def check_backfill(run: RunFacts, rule: str, parameter: str) -> Finding | None:
    """
    Find that a run is a backfill, or comes from backfills alone.

    :param rule: What backfills do not do, in words.
    :param parameter: The parameter by which the author changes that.
    """
    unless = f"backfills {rule} unless the task says {parameter}=True"
    if run.run_type == "backfill":
        return Finding(Condition.BACKFILL_RUN, f"this is a backfill run, and {unless}")
    if run.triggered_by_backfill:
        return Finding(
            Condition.BACKFILL_RUN,
            f"the asset events that triggered this run come from backfill runs only, and {unless}",
        )
    return None


def check_campaign(campaign: Campaign, max_contacts: int | None = None) -> Finding | None:
    """
    Check the campaign as it was just read.

    :param max_contacts: How many contacts it may have; ``None`` for any number.
    """
    if campaign.status.is_running:
        return Finding(Condition.CAMPAIGN_ALREADY_RUNNING, "the campaign was already running, so it was not started")
    if campaign.status.has_ended:
        return Finding(
            Condition.CAMPAIGN_COMPLETED,
            f"the campaign is over ({campaign.status.value}), and a campaign that ended is not started again",
        )
    count = campaign.total_count
    if max_contacts is not None and (count is None or count > max_contacts):
        contacts = "an unknown number of contacts" if count is None else f"{count:,} contacts"
        return Finding(
            Condition.TOO_MANY_CONTACTS,
            f"the campaign has {contacts}, and max_contacts is {max_contacts:,}, so it was not started",
        )
    return None


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


class Moment(NamedTuple):
    """
    What guards look at.

    :param task: The operator, a ``StartCampaignOperator``.
    :param now: The time.
    :param campaign: The campaign as it was just read; ``None`` if it was not.
    :param is_again: Whether the campaign goes on at the opening of its hours: that it was due is no question then.
    """

    task: Any
    context: Mapping[str, Any]
    now: datetime
    campaign: Campaign | None = None
    is_again: bool = False


Guard = Callable[[Moment], Finding | None]


def _run(moment: Moment) -> Finding | None:
    task = moment.task
    if moment.is_again:
        return None
    return check_run(
        RunFacts.of(moment.context),
        moment.now,
        start_in_backfill=task.start_in_backfill,
        max_lateness=task.max_lateness,
    )


def _campaign(moment: Moment) -> Finding | None:
    return None if moment.campaign is None else check_campaign(moment.campaign, _limit(moment.task))


def _limit(task: Any) -> int | None:
    """Return how many contacts there may be, as it was rendered. A limit that gives no number allows no start."""
    if task.max_contacts is NOT_GIVEN:
        return None
    try:
        return read_rendered_number("max_contacts", task.max_contacts, minimum=0)
    except ValueError as error:
        raise AirflowFailException(
            f"Campaign {task.campaign_id!r:.80}: {error} If a template gave that: did the task that it reads return a "
            "number? Nothing was started."
        ) from None


def _configuration(moment: Moment) -> Finding | None:
    return None if moment.campaign is None else check_configuration(moment.campaign, moment.now)


def _hours(moment: Moment) -> Finding | None:
    return check_calling_hours(moment.task.calling_hours, moment.now)


#: The guards before the campaign is read, before its start or a rehearsal, and right before the start is sent.
BEFORE_READING: Sequence[Guard] = (_run,)
BEFORE_START: Sequence[Guard] = (_campaign, _hours)
BEFORE_REHEARSAL: Sequence[Guard] = (_campaign, _configuration, _hours)
BEFORE_SENDING: Sequence[Guard] = (_run, _hours)


def first_finding(guards: Iterable[Guard], moment: Moment) -> Finding | None:
    """Return what the first guard finds that finds something."""
    return next((finding for guard in guards if (finding := guard(moment)) is not None), None)


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
