# SPDX-License-Identifier: Apache-2.0
"""
Whether a start without a response took effect, judged by what the service says afterwards.

The campaign was read just before the start and was neither running nor over, so a later status that only a running
campaign can reach is evidence of our start.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum

from airflow_provider_voicegenie.api.models import TIME_TOLERANCE, Campaign, CampaignStats, CampaignStatus
from airflow_provider_voicegenie.rules.calling_hours import CallingHours, is_open

#: How far the clocks of Airflow and the service may differ.
_CLOCK_TOLERANCE = timedelta(minutes=2)


class TookEffect(Enum):
    """Whether the start took effect."""

    YES = "the start took effect"
    NO = "the start did not take effect"
    UNKNOWN = "whether the start took effect is unknown"


def took_effect_by_status(before: Campaign, readings: Sequence[Campaign]) -> TookEffect:
    """
    Judge by the campaign alone. A status that we do not know proves nothing, neither before the start nor after it.

    :param before: The campaign as it was read before the start.
    :param readings: The campaign as it was read since, one time at least.
    """
    after = readings[-1]
    if before.status is CampaignStatus.UNKNOWN:
        return TookEffect.UNKNOWN
    if after.status in (CampaignStatus.RUNNING, CampaignStatus.COMPLETED):
        return TookEffect.YES
    if after.status is CampaignStatus.PAUSED and before.status is not CampaignStatus.PAUSED:
        # Only a running campaign can be paused: it was started, and someone paused it since.
        return TookEffect.YES
    if _calls_made(after) > _calls_made(before):
        # The calls of a paused campaign go on to their end.
        return TookEffect.UNKNOWN if before.status is CampaignStatus.PAUSED else TookEffect.YES
    if before.status is CampaignStatus.NOT_YET_STARTED or any(each.status is not before.status for each in readings):
        # One that is pending may have been taken in, and begin later.
        return TookEffect.UNKNOWN
    if before.status is CampaignStatus.PAUSED and _was_touched(before, readings):
        # It may have been started and paused again.
        return TookEffect.UNKNOWN
    return TookEffect.NO


def took_effect_by_statistics(
    judged: TookEffect,
    statistics: CampaignStats | None,
    sent_at: datetime,
    now: datetime,
    *,
    is_clock_known: bool = True,
) -> TookEffect:
    """
    Judge by the statistics as well. Without them, nobody can say that the start did not take effect.

    They tell a campaign that was started and paused again from a campaign that was not started; and the status may lag.

    :param judged: What the campaign alone says.
    :param statistics: The statistics, of a time at which the start would show; ``None`` if they cannot be read.
    :param sent_at: When the start was sent, by the service's clock.
    :param now: The time, by the service's clock.
    :param is_clock_known: Whether these two really are the service's, and not our own.
    """
    if judged is TookEffect.YES:
        return judged
    if statistics is None:
        return TookEffect.UNKNOWN
    started_at = statistics.started_at
    if started_at is None or started_at > now + _CLOCK_TOLERANCE:
        # One in the future is planned.
        return judged
    if sent_at - TIME_TOLERANCE <= started_at <= now + TIME_TOLERANCE:
        return TookEffect.YES
    return judged if started_at < sent_at and is_clock_known else TookEffect.UNKNOWN


def _was_touched(before: Campaign, readings: Sequence[Campaign]) -> bool:
    """Whether ``updated_at`` changed once; if it changes at every reading, it says nothing."""
    moments = {each.updated_at for each in readings}
    return len(moments) == 1 and before.updated_at not in moments


def _calls_made(campaign: Campaign) -> int:
    return (campaign.completed_count or 0) + (campaign.failed_count or 0)


def was_started_in_run(
    campaign: Campaign, statistics: CampaignStats, run_began: datetime | None, now: datetime, *, is_clock_known: bool
) -> TookEffect:
    """
    Judge whether a campaign was started since a DAG run began: the evidence if nothing is kept across tries.

    :param run_began: When the run began, by the service's clock; ``None`` if that is not known.
    :param now: The time, by the service's clock.
    :param is_clock_known: Whether these two really are the service's, and not our own.
    """
    started_at, status = statistics.started_at, campaign.status
    latest = now + (_CLOCK_TOLERANCE if status.may_have_been_started else TIME_TOLERANCE)
    if started_at is None or started_at > latest:
        # One in the future is planned.
        was_not = not status.may_have_been_started or (status is CampaignStatus.PAUSED and run_began is not None)
        return TookEffect.NO if was_not else TookEffect.UNKNOWN
    if run_began is None:
        return TookEffect.UNKNOWN
    if started_at >= run_began - _CLOCK_TOLERANCE:
        return TookEffect.YES
    return TookEffect.NO if is_clock_known else TookEffect.UNKNOWN


def has_started_itself(campaign: Campaign, statistics: CampaignStats, calling_hours: Sequence[CallingHours]) -> bool:
    """
    Say whether a campaign that runs was started by itself, as one with a daily schedule is, or by somebody else.

    A task starts nothing outside its calling hours. That is concluded only of a campaign that runs: it is not started
    again in any case.

    :param statistics: Its statistics, by which it was started since the DAG run began.
    :param calling_hours: The task's; empty for any time.
    """
    started_at = statistics.started_at
    if started_at is None or not campaign.status.is_running:
        return False
    return not any(
        is_open(calling_hours, started_at + lag) for lag in (-_CLOCK_TOLERANCE, timedelta(), _CLOCK_TOLERANCE)
    )
