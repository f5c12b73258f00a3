# SPDX-License-Identifier: Apache-2.0
"""The wait for a campaign's end: all its rules."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, write_time
from airflow_provider_voicegenie.rules.outcomes import Condition, Finding, OutcomeRules
from airflow_provider_voicegenie.waiting.progress import ProgressLog, describe
from airflow_provider_voicegenie.waiting.watch import End, EndReason, Watch, ago

if TYPE_CHECKING:
    from airflow_provider_voicegenie.api.errors import VoiceGenieError

_CONDITIONS: Mapping[CampaignStatus, tuple[Condition, str]] = {
    CampaignStatus.FAILED: (Condition.CAMPAIGN_FAILED, "it ended as failed"),
    CampaignStatus.STOPPED: (Condition.CAMPAIGN_STOPPED, "it was stopped"),
    CampaignStatus.PAUSED: (
        Condition.CAMPAIGN_PAUSED,
        "it was paused, by someone or, when a quota is used up, by the service",
    ),
}

#: How a campaign is described that the service may still show as it was.
_OLD_PAUSE = "paused, which may be from before its start"

#: Statuses in which calls are expected to go on, as far as we know.
_MOVING = (CampaignStatus.RUNNING, CampaignStatus.UNKNOWN)


class CompletionWatch(Watch):
    """
    One wait for a campaign's end.

    :param campaign_id: The campaign.
    :param rules: What each condition does to the wait.
    :param now: When the wait began, Unix seconds.
    :param stall_timeout: Seconds without progress in any counter that are too many; ``None`` for any number.
    :param seen: What is known of the campaign: when its counters were last seen to change (``at``, Unix seconds), and
        what they were (``completed``, ``failed``). If the task has started a campaign that was paused, the service may
        show it so for a while: ``pauses_count_from`` (Unix seconds) is when that is over.
    """

    __slots__ = (
        "_completed",
        "_counts_seen",
        "_ended_at",
        "_failed",
        "_is_pause_doubted",
        "_known_in_full",
        "_moved_at",
        "_pauses_count_from",
        "_progress",
        "_seen_at",
        "_stall_timeout",
        "_status",
        "_status_text",
        "needs_single_read",
    )

    def __init__(
        self,
        campaign_id: str,
        rules: OutcomeRules,
        now: float,
        *,
        stall_timeout: float | None = None,
        seen: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(campaign_id, rules, now)
        seen = seen or {}
        self._stall_timeout = stall_timeout
        self._completed: int | None = seen.get("completed")
        self._failed: int | None = seen.get("failed")
        self._known_in_full = self._completed is not None and self._failed is not None
        self._moved_at: float = seen.get("at", now)
        self._pauses_count_from: float | None = seen.get("pauses_count_from")
        self._is_pause_doubted = False
        self._seen_at = now
        # Of the campaign only what is needed: there may be ten thousand waits.
        self._status: CampaignStatus | None = None
        self._status_text = ""
        #: Calls completed and failed, and contacts, as the last reading had them: a list does not have the failed ones.
        self._counts_seen: tuple[int | None, int | None, int | None] = (None, None, None)
        self._ended_at: datetime | None = None
        self._progress = ProgressLog()
        #: Whether the campaign has to be read by itself at once: a list does not have all its counters.
        self.needs_single_read = False

    def observe(self, reading: Campaign | VoiceGenieError, now: float, *, in_full: bool = True) -> End | None:
        """
        Take note of a reading.

        :param reading: The campaign as it was just read, or why it could not be.
        :param now: Unix seconds.
        :param in_full: Whether it was read by itself, and not in a list, which does not have all counters.
        :returns: How the wait ended; ``None`` while it goes on.
        """
        self.needs_single_read = False
        if not isinstance(reading, Campaign):
            return self.observe_error(reading, now)
        self._end = self._observe_campaign(reading, now, in_full=in_full)
        self._remind(now)
        return self._end

    def look(self, reading: Campaign | VoiceGenieError, in_full: bool, now: float) -> End | bool | None:
        """
        Take note of a reading that all waits share, as a feed shows it.

        :param reading: The campaign, or why it could not be read.
        :param in_full: Whether it was read by itself.
        :param now: Unix seconds.
        :returns: How the wait ended; ``True`` if the campaign has to be read by itself at once; else ``None``.
        """
        return self.observe(reading, now, in_full=in_full) or self.needs_single_read or None

    def _observe_campaign(self, campaign: Campaign, now: float, *, in_full: bool) -> End | None:
        status = campaign.status
        if status is CampaignStatus.PAUSED and self._pauses_count_from is not None and now < self._pauses_count_from:
            self._recover(now)
            if not self._is_pause_doubted:
                self._is_pause_doubted = True
                self._log(f"it is shown as {_OLD_PAUSE}, so the wait goes on", now)
            return None
        before, self._status = self._status, status
        self._status_text, self._ended_at = campaign.status_text, campaign.ended_at
        self._counts_seen = (campaign.completed_count, campaign.failed_count, campaign.total_count)
        self._seen_at = now
        self._recover(now)
        if before is not status:
            self._announced = None
            self._moved_at = now if before is not None else self._moved_at
            if status is CampaignStatus.UNKNOWN:
                self._log(f"status {campaign.status_text[:40]!r} is unknown here; still waiting", now, logging.WARNING)
        self._count(campaign, now, in_full=in_full)
        if line := self._progress.line(campaign, now):
            self._log(line, now)
        if status is CampaignStatus.COMPLETED:
            return End(EndReason.DONE, "it is completed", result=self._result(), at=now)
        if status in _CONDITIONS:
            condition, words = _CONDITIONS[status]
            return self._meet(Finding(condition, f"{words} ({self.last_seen(now)})"), now)
        if status not in _MOVING:
            self._moved_at = now
        elif self._stall_timeout is not None and now - self._moved_at >= self._stall_timeout:
            if not in_full:
                self.needs_single_read = True
                return None
            words = f"no counter has changed for {now - self._moved_at:.0f} s ({self.last_seen(now)})"
            return self._meet(Finding(Condition.CAMPAIGN_STALLED, words), now)
        return None

    def seen(self) -> dict[str, Any]:
        """Return when the counters were last seen to change, and what they are, as plain JSON."""
        return {"at": self._moved_at, "completed": self._completed, "failed": self._failed}

    def last_seen(self, now: float) -> str:
        """Say what was last seen of the campaign."""
        if self._status is None:
            seen = f"last seen: {_OLD_PAUSE}" if self._is_pause_doubted else "never seen"
            return f"{seen}{self._since_then()}"
        words = describe(self._status_text, *self._counts_seen)
        return f"last seen{ago(now - self._seen_at)}: {words}{self._since_then()}"

    def _result(self) -> Mapping[str, Any]:
        ended_at = self._ended_at if self._status is CampaignStatus.COMPLETED else None
        return {
            "status": (self._status or CampaignStatus.UNKNOWN).value,
            "completed_at": write_time(ended_at),
            "statistics": None,
        }

    def _count(self, campaign: Campaign, now: float, *, in_full: bool) -> None:
        """Compare the counters with what was known of them."""
        moved = _differ(self._completed, campaign.completed_count)
        if in_full:
            # Before the failed calls were known, nobody can say that they did not change.
            moved = moved or _differ(self._failed, campaign.failed_count) or not self._known_in_full
            self._known_in_full = True
        if campaign.completed_count is not None:
            self._completed = campaign.completed_count
        if campaign.failed_count is not None:
            self._failed = campaign.failed_count
        if moved:
            self._moved_at = now
            if self._announced is Condition.CAMPAIGN_STALLED:
                self._announced = None


def _differ(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and before != after
