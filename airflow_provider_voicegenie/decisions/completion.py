# SPDX-License-Identifier: Apache-2.0
"""The wait for a campaign's end: all its rules, and no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_voicegenie.api.models import Campaign, CampaignStatus, write_time
from airflow_provider_voicegenie.decisions.outcomes import Condition, OutcomeRules
from airflow_provider_voicegenie.decisions.progress import ProgressLog, describe
from airflow_provider_voicegenie.decisions.waiting import NOTHING, End, EndReason, Step, Watch

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

#: Where calls are expected to go on, as far as we know.
_MOVING = (CampaignStatus.RUNNING, CampaignStatus.UNKNOWN)


class CompletionWatch(Watch):
    """
    One wait for a campaign's end.

    :param campaign_id: The campaign.
    :param rules: What each condition does to the wait.
    :param now: When the wait began, Unix seconds; or when the counters were last seen to change.
    :param stall_timeout: Seconds without progress in any counter that are too many; ``None`` for any number.
    :param completed: Calls completed as they were known at ``now``.
    :param failed: Calls failed as they were known at ``now``.
    """

    __slots__ = (
        "_completed",
        "_ended_at",
        "_failed",
        "_known_in_full",
        "_moved_at",
        "_progress",
        "_seen_at",
        "_stall_timeout",
        "_status",
        "_status_text",
        "_total",
    )

    def __init__(
        self,
        campaign_id: str,
        rules: OutcomeRules,
        now: float,
        *,
        stall_timeout: float | None = None,
        completed: int | None = None,
        failed: int | None = None,
    ) -> None:
        super().__init__(campaign_id, rules, now)
        self._stall_timeout = stall_timeout
        self._completed = completed
        self._failed = failed
        self._known_in_full = completed is not None and failed is not None
        self._moved_at = now
        self._seen_at = now
        # Of the campaign only what is needed: there may be ten thousand waits.
        self._status: CampaignStatus | None = None
        self._status_text = ""
        self._total: int | None = None
        self._ended_at: datetime | None = None
        self._progress = ProgressLog()

    def see(self, sighting: Campaign | VoiceGenieError, in_full: bool, now: float) -> Step | None:
        """
        Take note of a reading, whatever came of it.

        :param sighting: The campaign, or why it could not be read.
        :param in_full: Whether it was read by itself.
        :param now: Unix seconds.
        :returns: What follows; ``None`` where nothing does.
        """
        if isinstance(sighting, Campaign):
            step = self.see_campaign(sighting, now, in_full=in_full)
        else:
            step = self.see_error(sighting, now)
        return None if step == NOTHING else step

    def see_campaign(self, campaign: Campaign, now: float, *, in_full: bool) -> Step:
        """
        Take note of the campaign.

        :param campaign: As it was just read.
        :param now: Unix seconds.
        :param in_full: Whether it was read by itself, and not in a list, which does not tell all counters.
        """
        return self._taken(self._step(campaign, now, in_full=in_full), now)

    def _step(self, campaign: Campaign, now: float, *, in_full: bool) -> Step:
        status = campaign.status
        before, self._status = self._status, status
        self._status_text, self._total, self._ended_at = campaign.status_text, campaign.total_count, campaign.ended_at
        self._seen_at = now
        notes = self._recovered()
        if before is not status:
            self._announced = None
            self._moved_at = now if before is not None else self._moved_at
            if status is CampaignStatus.UNKNOWN:
                notes += (self._warning(f"status {campaign.status_text[:40]!r} is unknown here; waiting on"),)
        self._count(campaign, now, in_full=in_full)
        if line := self._progress.line(campaign, self._failed, now):
            notes += (self._info(line),)
        if status is CampaignStatus.COMPLETED:
            return Step(notes, end=End(EndReason.DONE, "it is completed", result=self._result(), at=now))
        if status in _CONDITIONS:
            condition, words = _CONDITIONS[status]
            return self._meet(condition, f"{words} ({self.last_seen(now)})", notes)
        if status not in _MOVING:
            self._moved_at = now
        elif self._stall_timeout is not None and now - self._moved_at >= self._stall_timeout:
            if not in_full:
                return Step(notes, read_alone=True)
            words = f"no counter has changed for {now - self._moved_at:.0f} s ({self.last_seen(now)})"
            return self._meet(Condition.CAMPAIGN_STALLED, words, notes)
        return Step(notes) if notes else NOTHING

    def seen(self) -> dict[str, Any]:
        """Return when the counters were last seen to change, and what they are, as plain JSON."""
        return {"at": self._moved_at, "completed": self._completed, "failed": self._failed}

    def last_seen(self, now: float) -> str:
        """Say what was last seen of the campaign."""
        if self._status is None:
            return f"never seen{self._since_then()}"
        age = now - self._seen_at
        ago = "" if age < 1 else f" {age:.0f} s ago"
        words = describe(self._status_text, self._completed, self._failed, self._total)
        return f"last seen{ago}: {words}{self._since_then()}"

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
