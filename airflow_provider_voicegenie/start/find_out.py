# SPDX-License-Identifier: Apache-2.0
"""A start without a valid response: look at the campaign until it shows whether the start took effect."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from airflow_provider_voicegenie.api.errors import VoiceGenieError
from airflow_provider_voicegenie.api.models import Campaign, CampaignStats, CampaignStatus
from airflow_provider_voicegenie.metrics import count_start
from airflow_provider_voicegenie.rules.calling_hours import AtClosing, next_closing
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, apply_outcome
from airflow_provider_voicegenie.start.evidence import TookEffect, took_effect_by_statistics, took_effect_by_status
from airflow_provider_voicegenie.start.guards import describe_contacts
from airflow_provider_voicegenie.start.record import OwnStart, Start
from airflow_provider_voicegenie.timing import timing

log = logging.getLogger(__name__)


def find_out(
    own: OwnStart, before: Campaign, sent_at: datetime, over_at: datetime | None = None, problem: str = ""
) -> Start | None:
    """
    Find out whether a start without a valid response took effect, and return it; ``None`` if it did not.

    :param before: The campaign as it was before.
    :param sent_at: When the start was sent, by the service's clock.
    :param over_at: When the request was surely over, by the service's clock; ``None`` for just now.
    :param problem: What went wrong, for the message.
    """
    with own.reading():
        readings, statistics = _read_until_started(own, before, over_at)
    took_effect = took_effect_by_status(before, readings) if readings else TookEffect.UNKNOWN
    started_at = None
    if took_effect is not TookEffect.YES:
        took_effect = took_effect_by_statistics(
            took_effect, statistics, sent_at, own.service_time(), is_clock_known=own.hook.client.is_clock_known
        )
        if took_effect is TookEffect.YES and statistics is not None:
            started_at = statistics.started_at
    seen = _describe(before, readings, statistics, took_effect)
    log.info("Campaign %r: %s (%s).", own.campaign_id, took_effect.value, seen)
    if took_effect is TookEffect.UNKNOWN:
        raise_unconfirmed(
            own,
            f"the start may have been sent, but no valid response came, and {took_effect.value} ({seen})",
            problem,
        )
    if took_effect is TookEffect.NO:
        # It stays on record as sent: should it take effect after all, the next try finds it.
        own.may_be_in_effect = False
        return None
    own.confirm(started_at)
    count_start(was_ambiguous=True)
    log_start(own, before, readings[-1].status)
    return Start.by_task(readings[-1].status, started_at, doubt_pauses(own, before))


def _describe(
    before: Campaign, readings: list[Campaign], statistics: CampaignStats | None, took_effect: TookEffect
) -> str:
    now = f", is now {describe_status(readings[-1])}" if readings else ", and it cannot be read now"
    seen = f"status was {describe_status(before)}{now}"
    if took_effect is TookEffect.UNKNOWN and readings and statistics is None:
        seen += ", and its statistics cannot be read now"
    return seen


def _read_until_started(
    own: OwnStart, before: Campaign, over_at: datetime | None
) -> tuple[list[Campaign], CampaignStats | None]:
    """
    Look at the campaign until it shows that the start took effect, and at the statistics if it does not.

    The campaign may be shown as it was before, so only statistics from after the start show that nothing happened.
    """
    readings: list[Campaign] = []
    for delay in timing.start_read_delays:
        time.sleep(delay)
        if _read(own, before, readings):
            return readings, None
    if not readings:
        return readings, None
    await_fresh_statistics(own, over_at, sum(timing.start_read_delays))
    if _read(own, before, readings):
        return readings, None
    try:
        return readings, own.hook.get_campaign_stats(own.campaign_id)
    except VoiceGenieError as error:
        log.warning("%s", error)
        return readings, None


def _read(own: OwnStart, before: Campaign, readings: list[Campaign]) -> bool:
    """Read the campaign, and say whether it shows that the start took effect."""
    try:
        readings.append(own.hook.get_campaign(own.campaign_id))
    except VoiceGenieError as error:
        log.warning("%s", error)
        return False
    return took_effect_by_status(before, readings) is TookEffect.YES


def await_fresh_statistics(own: OwnStart, over_at: datetime | None = None, waited: float = 0.0) -> None:
    """
    Wait until statistics read now cannot be from before what was done: the service caches them for 30 s.

    How long to sleep is not for a clock of others to say: it is all of that time, less what was waited.

    :param over_at: When it was surely done, by the service's clock; ``None`` for just now.
    :param waited: How many seconds this process has waited since.
    """
    lag = timing.statistics_lag
    if over_at is not None and own.hook.client.is_clock_known and own.service_time() > over_at + timedelta(seconds=lag):
        return
    seconds = lag - waited
    if seconds > 0:
        log.info("Campaign %r: its statistics may be old; reading them in %.0f s.", own.campaign_id, seconds)
        time.sleep(seconds)


def doubt_pauses(own: OwnStart, before: Campaign | None, sent_at: datetime | None = None) -> dict[str, float]:
    """
    Say from when on the campaign is surely shown as it is after the start, if it may be shown as paused before.

    :param before: The campaign as it was before; ``None`` if nobody knows.
    :param sent_at: When the start was sent, by the service's clock; ``None`` for just now.
    :returns: What the wait is given of that.
    """
    if before is not None and before.status not in (CampaignStatus.PAUSED, CampaignStatus.UNKNOWN):
        return {}
    passed = 0.0 if sent_at is None else max(0.0, (own.service_time() - sent_at).total_seconds())
    left = timing.statistics_lag - passed
    return {"pauses_count_from": time.time() + left} if left > 0.0 else {}


def raise_unconfirmed(own: OwnStart, what: str, problem: str = "") -> NoReturn:
    """End the task, as nobody can say whether the start took effect."""
    message = (
        f"{what}. Look at the campaign in the VoiceGenie dashboard: if it was not started, clear this task to start "
        f"it; if it was, mark the task as success.{problem}"
    )
    apply_outcome(own.task.outcome_rules, Finding(Condition.START_UNCONFIRMED, message), own.campaign_id)
    raise AssertionError("START_UNCONFIRMED always ends the task")


def describe_status(campaign: Campaign) -> str:
    """Return the status as we read it; the service's own word if we do not know it."""
    status = campaign.status
    return repr(campaign.status_text[:40]) if status is CampaignStatus.UNKNOWN else status.value


def log_start(own: OwnStart, before: Campaign, status: CampaignStatus) -> None:
    """Say in the log that the campaign was started, and whom it phones."""
    more = ", and it goes on after a pause" if before.status is CampaignStatus.PAUSED else ""
    more += "." if own.task.wait_for_completion else ". The task does not wait for its end."
    hours = own.task.calling_hours
    with suppress(ValueError):  # of a function of the author's: it was started all the same
        if hours and own.task.at_closing is AtClosing.GO_ON and (closes := next_closing(hours, datetime.now(UTC))):
            at = f"{hours[0].local_time(closes)} {hours[0].timezone}"
            more += f" Its calling hours close on {at}, and nobody pauses it then."
    log.info("Campaign %r was started: %s, status %s%s", own.campaign_id, describe_contacts(before), status.value, more)
