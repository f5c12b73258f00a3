# SPDX-License-Identifier: Apache-2.0
"""
Whether a start whose answer was lost took effect, judged by what the service says afterwards.

The campaign was read just before the start and was neither running nor over, so a later status that only a
running campaign can reach is evidence of our start.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum

from airflow_provider_voicegenie.api.models import Campaign, CampaignStats, CampaignStatus

#: How far the service's own times may differ from one another: its `Date` has whole seconds.
_TOLERANCE = timedelta(seconds=2)


class Settlement(Enum):
    """What became of the start."""

    STARTED = "it took effect"
    NOT_STARTED = "it did not take effect"
    UNKNOWN = "it cannot be told whether it took effect"


def settle_by_status(before: Campaign, looks: Sequence[Campaign]) -> Settlement:
    """
    Judge by the campaign alone.

    :param before: The campaign as it was read before the start.
    :param looks: The campaign as it was read since, one time at least.
    """
    after = looks[-1]
    if after.status in (CampaignStatus.RUNNING, CampaignStatus.COMPLETED):
        return Settlement.STARTED
    if after.status is CampaignStatus.PAUSED and before.status is not CampaignStatus.PAUSED:
        # Only a running campaign can be paused: it was started, and someone paused it since.
        return Settlement.STARTED
    if _calls_made(after) > _calls_made(before):
        return Settlement.STARTED
    if after.status is not before.status:
        return Settlement.UNKNOWN
    if before.status is CampaignStatus.PAUSED and _was_touched(before, looks):
        # It may have been started and paused again.
        return Settlement.UNKNOWN
    return Settlement.NOT_STARTED


def settle_by_stats(judged: Settlement, stats: CampaignStats, sent_at: datetime) -> Settlement:
    """
    Judge by the statistics as well, which tell a campaign that was started and paused again from one that was not.

    :param judged: What the campaign alone says.
    :param stats: The statistics, read after the start for the first time.
    :param sent_at: When the start was sent, by the service's clock.
    """
    if stats.started_at is not None and stats.started_at >= sent_at - _TOLERANCE:
        return Settlement.STARTED
    return judged


def _was_touched(before: Campaign, looks: Sequence[Campaign]) -> bool:
    """Whether ``updated_at`` changed once; one that changes at every look says nothing."""
    moments = {look.updated_at for look in looks}
    return len(moments) == 1 and before.updated_at not in moments


def _calls_made(campaign: Campaign) -> int:
    return (campaign.completed_count or 0) + (campaign.failed_count or 0)
