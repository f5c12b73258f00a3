# SPDX-License-Identifier: Apache-2.0
"""Whether an earlier try of the task started the campaign, or a try before a user cleared it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_voicegenie.api.errors import NotFoundError, VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign, CampaignStats, CampaignStatus, read_time, write_time
from airflow_provider_voicegenie.hooks.voicegenie import VoiceGenieHook
from airflow_provider_voicegenie.memory import AIRFLOW_VERSION
from airflow_provider_voicegenie.start.evidence import TookEffect, has_started_itself, was_started_in_run
from airflow_provider_voicegenie.start.find_out import (
    await_fresh_statistics,
    describe_status,
    doubt_pauses,
    find_out,
    raise_unconfirmed,
)
from airflow_provider_voicegenie.start.record import LONGEST_START, OwnStart, Start, StartPhase, StartRecord
from airflow_provider_voicegenie.timing import timing

log = logging.getLogger(__name__)

#: Whether this Airflow forgets with a clear what a task has started.
_FORGETS_AT_CLEAR = AIRFLOW_VERSION >= (3, 4)


def take_over(own: OwnStart) -> Start | None:
    """
    Return the start that an earlier try of this task made, if one did.

    :raises VoiceGenieError: The service could not be asked.
    """
    record = own.recall()
    if (last := record or own.owed) is not None and own.kill.pulled:
        # The end of a task is about the campaign that it started, even if its templates give another one by now.
        own.campaign_id, own.hook = last.campaign_id, own.hook_of(last)
    if record is not None:
        _refuse_another_campaign(own, record)
        own.may_be_in_effect = record.phase not in (StartPhase.TIMED_OUT, StartPhase.PAUSED)
        own.is_confirmed = record.phase is StartPhase.STARTED
    if own.must_pause_on_kill:
        own.may_be_in_effect = own.is_confirmed = True
    own.kill.check()
    if own.paused is not None:
        return None
    if record is not None:
        return _take_over_recorded(own, record)
    if own.keeps_records or own.memory.is_first_try:
        return None
    return _take_over_by_evidence(own)


def _refuse_another_campaign(own: OwnStart, record: StartRecord) -> None:
    """Fail if the start of an earlier try was another campaign's: one task starts one campaign."""
    if record.is_about(**own.about):
        return
    raise AirflowFailException(
        f"Campaign {own.campaign_id!r:.80} (connection {own.hook.voicegenie_conn_id!r}): an earlier try of this task "
        f"started campaign {record.campaign_id!r:.80} (connection {record.voicegenie_conn_id!r}), so this try starts "
        "nothing. The templates of the task give another campaign at each try: use one that stays the same. To start "
        "the new one, clear this task; the earlier one is not paused by that."
    )


def _take_over_recorded(own: OwnStart, record: StartRecord) -> Start | None:
    sent_at = read_time(record.sent_at)
    if record.phase is StartPhase.TIMED_OUT:
        was_paused = "could not pause it" if record.must_pause_on_kill else "paused it"
        raise AirflowFailException(
            f"Campaign {own.campaign_id!r}: an earlier try of this task started it, and {was_paused} when its "
            "execution_timeout was over. A retry does not start it again. To let it go on, clear this task; to give up "
            "waiting without a pause, use completion_timeout."
        )
    if record.phase is StartPhase.SENT:
        log.warning(
            "Campaign %r: an earlier try of this task was ended while it sent the start. Looking at the campaign.",
            own.campaign_id,
        )
        sent_at = sent_at or datetime.now(UTC)
        return find_out(own, record.campaign_before(), sent_at, sent_at + LONGEST_START)
    return _follow_earlier_start(
        own, read_time(record.started_at), doubt_pauses(own, record.campaign_before(), sent_at)
    )


def _follow_earlier_start(own: OwnStart, started_at: datetime | None, counters: Mapping[str, Any]) -> Start:
    status = CampaignStatus.UNKNOWN
    try:
        with own.reading():
            status = own.hook.get_campaign(own.campaign_id).status
    except VoiceGenieError as error:
        log.warning("%s", error)
    log.info(
        "Campaign %r: an earlier try of this task started it, so it is not started again; its status is %s.",
        own.campaign_id,
        status.value,
    )
    return Start.by_task(status, started_at, counters)


# The evidence of the service, if Airflow keeps nothing across tries.


def _take_over_by_evidence(own: OwnStart) -> Start | None:
    """Ask the service whether an earlier try started the campaign: this Airflow keeps nothing across tries."""
    with own.reading():
        campaign, statistics = _evidence_of_run(own)
    if statistics is None:
        return None
    was_started = _was_started_in_run(own, campaign, statistics)
    if was_started is TookEffect.NO:
        return None
    if was_started is TookEffect.UNKNOWN:
        seen = f"status {describe_status(campaign)}, but no time of its start that can be compared"
        raise_unconfirmed(
            own, f"an earlier try of this task may have started it, and nothing shows whether it did ({seen})"
        )
    started_at = write_time(statistics.started_at)
    if _has_started_itself(own, campaign, statistics):
        log.info(
            "Campaign %r: it was started at %s, outside the calling hours, so by no earlier try of this task.",
            own.campaign_id,
            started_at,
        )
        return None
    log.warning(
        "Campaign %r: it was started at %s, since this DAG run began, so an earlier try of this task is taken to have "
        "done that. If it has a daily schedule, it may have started itself.",
        own.campaign_id,
        started_at,
    )
    own.may_be_in_effect = own.is_confirmed = True
    return _follow_earlier_start(own, statistics.started_at, doubt_pauses(own, None, statistics.started_at))


def recognize_earlier_start(own: OwnStart) -> None:
    """Ask the service whether a killed task's earlier try started the campaign, if Airflow keeps nothing of it."""
    if own.may_be_in_effect or own.keeps_records or own.memory.is_first_try:
        return
    try:
        campaign = own.hook.get_campaign(own.campaign_id)
        if campaign.status.is_running:
            statistics = own.hook.get_campaign_stats(own.campaign_id)
            was_started = _was_started_in_run(own, campaign, statistics) is TookEffect.YES
            own.may_be_in_effect = was_started and not _has_started_itself(own, campaign, statistics)
            own.is_confirmed = own.may_be_in_effect
    except VoiceGenieError as error:
        log.warning("%s Look in the VoiceGenie dashboard whether it has to be paused.", error)


def _evidence_of_run(own: OwnStart) -> tuple[Campaign, CampaignStats | None]:
    """Read the campaign and statistics that show a start by an earlier try, which may have ended just now."""
    hook, campaign_id = own.hook, own.campaign_id
    campaign = hook.get_campaign(campaign_id)
    try:
        statistics = hook.get_campaign_stats(campaign_id)
        if _was_started_in_run(own, campaign, statistics) is not TookEffect.YES:
            await_fresh_statistics(own)
            campaign, statistics = hook.get_campaign(campaign_id), hook.get_campaign_stats(campaign_id)
    except NotFoundError:
        if campaign.status.may_have_been_started:
            raise
        # It never ran, and the service may have no statistics of such a campaign.
        return campaign, None
    return campaign, statistics


def _was_started_in_run(own: OwnStart, campaign: Campaign, statistics: CampaignStats) -> TookEffect:
    service_time = own.service_time()
    began: datetime | None = getattr(own.context["dag_run"], "start_date", None)
    if began is not None:
        # By the service's clock.
        began += service_time - datetime.now(UTC)
    return was_started_in_run(campaign, statistics, began, service_time, is_clock_known=own.hook.client.is_clock_known)


def _has_started_itself(own: OwnStart, campaign: Campaign, statistics: CampaignStats) -> bool:
    try:
        return has_started_itself(campaign, statistics, own.task.calling_hours)
    except ValueError as error:
        # A function of the author's failed: then the campaign counts as the task's own, which a kill pauses.
        log.warning("Campaign %r: %s", own.campaign_id, error)
        return False


# A start before a user cleared the task: the triggerer may pause its campaign any moment.


def may_be_paused_late(own: OwnStart) -> bool:
    """Say whether a user has cleared the task, so that the pause of its earlier campaign may still come."""
    return bool(own.task.wait_for_completion and own.task.pause_on_kill and own.awaits_pause)


def await_pause(hook: VoiceGenieHook, campaign: Campaign) -> Campaign:
    """Wait until a campaign that runs is paused, for as long as that may take; return it as it is then."""
    log.info("Campaign %r: this task was cleared while it ran; waiting for its pause.", campaign.campaign_id)
    deadline = time.monotonic() + timing.pause_after_clear
    while campaign.status.is_running and time.monotonic() < deadline:
        time.sleep(timing.pause_poll_interval)
        campaign = hook.get_campaign(campaign.campaign_id)
    return campaign


def await_pause_of_another(own: OwnStart) -> None:
    """Wait for the pause of the campaign that this task started before a user cleared it, if it was another."""
    cleared = own.cleared
    if not may_be_paused_late(own) or (cleared is not None and cleared.is_about(**own.about)):
        return
    if cleared is None:
        if not _FORGETS_AT_CLEAR or own.has_waited_for_pause:
            return
        own.has_waited_for_pause = True
        log.info(
            "Campaign %r: this task was cleared, and Airflow has deleted what it may have started before. Waiting "
            "%d s, so that such a campaign is paused first.",
            own.campaign_id,
            timing.unknown_pause_after_clear,
        )
        with own.kill.interruptible():
            time.sleep(timing.unknown_pause_after_clear)
        return
    # Nobody pauses the campaign that comes now.
    own.cleared, own.awaits_pause = None, False
    hook = own.hook_of(cleared)
    try:
        hook.get_conn()
        with own.kill.interruptible():
            campaign = hook.get_campaign(cleared.campaign_id)
            if campaign.status.is_running:
                campaign = await_pause(hook, campaign)
    except VoiceGenieError as error:
        log.warning("%s", error)
        return
    if campaign.status.is_running:
        log.error(
            "Campaign %r: this task started it before it was cleared, and it was not paused. IT MAY GO ON CALLING: "
            "pause it in the VoiceGenie dashboard. This task goes on with campaign %r.",
            cleared.campaign_id,
            own.campaign_id,
        )
